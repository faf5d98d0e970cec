// What all engines on a GPU are given. No word of CUDA here: operators are plain C++.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../views.h"

namespace fused_losses {

inline constexpr int kWarp = 32;

// Four warps: the fewest that keep a multiprocessor's four schedulers busy.
inline constexpr int kThreads = 128;

// How many of their blocks a multiprocessor is to hold: 128 registers for each thread. Not told, the assembler spills
// some to get one more block in.
inline constexpr int kBlocks = 4;

// Where a launch goes: the tensors' device, and its current stream.
struct Queue {
  int device = 0;
  void* stream = nullptr;
  int processors = 1;
  int64_t shared_bytes = 0;  // that a block may have, less what kernels declare
};

// As many blocks as there are tiles, and no more than the device can hold at once: each takes tiles in turn.
inline int blocks_for(const Queue& queue, int64_t tiles, int threads) {
  constexpr int kThreadsPerProcessor = 2048;
  const int64_t resident = static_cast<int64_t>(queue.processors) * (kThreadsPerProcessor / threads);
  // At least one, which writes the loss of no elements.
  return static_cast<int>(std::clamp<int64_t>(tiles, 1, resident));
}

// What derivatives are multiplied by: the gradient of the reduced loss, if there is one, over the divisor.
struct Scaling {
  const void* upstream = nullptr;
  ScalarType upstream_dtype = ScalarType::Float;
  bool ready = false;  // gradients are there for an upstream gradient of 1
  double divisor = 1;
  const double* divisor_on_device = nullptr;  // instead, where only the device knows it
};

// Where the reduced loss goes, and room for what blocks leave: a number for each, and how many have arrived, which
// is 0 before and after.
struct Reduced {
  void* loss = nullptr;  // null: not wanted
  ScalarType dtype = ScalarType::Float;
  double* partials = nullptr;
  unsigned* arrived = nullptr;
};

}  // namespace fused_losses

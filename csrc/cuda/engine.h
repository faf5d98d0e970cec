// What all engines on a GPU are given. Nothing here is CUDA's, since operators include it and are plain C++.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../views.h"

namespace fused_losses {

// Threads of a warp, on every GPU of NVIDIA's.
inline constexpr int kWarp = 32;

// Threads of a block: four warps, the fewest that keep a multiprocessor's four schedulers busy.
inline constexpr int kThreads = 128;

// How many such blocks a multiprocessor is to hold, which leaves 128 of its 65536 registers to each thread. If it is
// not told, the assembler spills some registers to get one more block in.
inline constexpr int kBlocks = 4;

// Where a launch goes: the tensors' device, and its current stream.
struct Queue {
  int device = 0;
  void* stream = nullptr;
  int processors = 1;        // the device's multiprocessors
  int64_t shared_bytes = 0;  // of dynamic shared memory that a block may have
};

// How many blocks to launch: as many as there are tiles, but no more than the device can hold at once. Each block then
// takes tiles in turn.
inline int blocks_for(const Queue& queue, int64_t tiles, int threads) {
  constexpr int kThreadsPerProcessor = 2048;  // the limit of sm_80, sm_90 and sm_100
  const int64_t resident = static_cast<int64_t>(queue.processors) * (kThreadsPerProcessor / threads);
  // At least one block, which writes the loss where there are no elements.
  return static_cast<int>(std::clamp<int64_t>(tiles, 1, resident));
}

// The most blocks of a launch of the pointwise engine, whatever the device: so the blocks add up the same elements
// everywhere, and the loss is the same bits. All are resident at once on a GPU of 64 multiprocessors or more; each of
// an H100's 132 has 8, which with two operands of 16 bits have 64 KiB on their way.
inline constexpr int kPointwiseBlocks = 1024;

// The same for rows of a softmax: where a block has one row at a time, more blocks than are resident at once, so that a
// device whose processors do not divide them is idle for a short time at their end.
inline constexpr int kSoftmaxBlocks = 4096;

// What derivatives are multiplied by: the upstream gradient of the reduced loss, if there is one, over the divisor.
struct Scaling {
  const void* upstream = nullptr;  // one number, in upstream_dtype; null: 1
  ScalarType upstream_dtype = ScalarType::Float;
  bool ready = false;  // whether the gradients for an upstream gradient of 1 are there: if it is 1, nothing is to do
  double divisor = 1;
  const double* divisor_on_device = nullptr;  // in place of the divisor, where only the device knows it
};

// Where the reduced loss goes, and the scratch memory of blocks: a number from each, and how many have arrived, which
// is 0 before a launch and after it.
struct Reduced {
  void* loss = nullptr;  // null: not wanted
  ScalarType dtype = ScalarType::Float;
  double* partials = nullptr;
  unsigned* arrived = nullptr;
};

}  // namespace fused_losses

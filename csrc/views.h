// What kernels see of tensors: a pointer, an element type, and where each element lies.
#pragma once

#include <cstdint>
#include <stdexcept>

#include "dtypes.h"

namespace fused_losses {

// torch's own limit on the dimensions of a tensor iterator.
inline constexpr int kMaxDims = 64;

// Dimensions that engines walk: a batch of volumes, each divided twice, and one more. With every launch, a GPU is sent
// sizes and strides for so many, of each operand; calls with more of them fall to torch (`MOST_DIMS` in dispatch.py).
inline constexpr int kLoopDims = 8;

inline void check_loop_dims(int dims) {
  if (dims > kLoopDims) throw std::runtime_error("fused_losses: kernels walk at most 8 dimensions");
}

// kBatchMean: the sum over the size of the first dimension.
enum Reduction : int64_t { kNone = 0, kMean = 1, kSum = 2, kBatchMean = 3 };

// The bits of an operator's `gradients`: derivatives with respect to its first three operands; and, going forward,
// whether to keep what the backward can use of each row.
enum Wanted : int64_t { kInput = 1, kTarget = 2, kExtra = 4, kStatistics = 8, kArgmax = 16 };

// An operand of an elementwise loop. `contiguous` means that element i of the iteration is data[i];
// otherwise strides (in elements, 0 where broadcast) go with the sizes of the iteration.
struct Operand {
  const void* data = nullptr;  // null: absent
  ScalarType dtype = ScalarType::Float;
  bool contiguous = true;
  int64_t strides[kLoopDims];
};

// A result of an elementwise loop; always written in iteration order.
struct Result {
  void* data = nullptr;  // null: not wanted
  ScalarType dtype = ScalarType::Float;
};

// The order in which elements are visited: outermost first, dimensions merged where every operand allows.
struct Iteration {
  int dims = 0;
  int64_t count = 1;
  int64_t sizes[kLoopDims];
};

// Where item i of an iteration over `dims` dimensions lies: its distance from
// item 0, in the unit of the strides.
FUSED_LOSSES_HOST_DEVICE inline int64_t offset_of(int64_t i, int dims, const int64_t* sizes, const int64_t* strides) {
  int64_t offset = 0;
  for (int d = dims - 1; d > 0; --d) {
    const int64_t rest = i / sizes[d];
    offset += (i - rest * sizes[d]) * strides[d];
    i = rest;
  }
  return dims > 0 ? offset + i * strides[0] : offset;
}

}  // namespace fused_losses

// What kernels see of tensors: a pointer, a dtype, and where each element lies.
#pragma once

#include <cstdint>

#include "dtypes.h"
#include "wanted.h"

namespace fused_losses {

// torch's own limit on the dimensions of a tensor iterator.
inline constexpr int kMaxDims = 64;

// The most dimensions that engines walk, once those that can be merged are: enough for a batch of volumes, each
// divided twice, and one more. Not more, since each launch sends a GPU sizes and strides for so many of each operand.
// Calls with more fall to torch (`MOST_DIMS` in Python).
inline constexpr int kLoopDims = 8;

// What becomes of the losses. kBatchMean: their sum over the size of the input's first dimension.
enum Reduction : int64_t { kNone = 0, kMean = 1, kSum = 2, kBatchMean = 3 };

// An operand of an elementwise loop. If it is `contiguous`, element i of the iteration is data[i]; if not, strides (in
// elements, 0 where it is broadcast) go with the sizes of the iteration.
struct Operand {
  const void* data = nullptr;  // null: absent
  ScalarType dtype = ScalarType::Float;
  bool contiguous = true;
  int64_t strides[kLoopDims];
};

// A result of an elementwise loop: element i of the iteration is data[i].
struct Result {
  void* data = nullptr;  // null: not wanted
  ScalarType dtype = ScalarType::Float;
};

// The order in which elements are visited: the sizes of its dimensions, outermost first. Neighbouring dimensions are
// merged where every operand steps through both as through one.
struct Iteration {
  int dims = 0;
  int64_t count = 1;
  int64_t sizes[kLoopDims];
};

// Whether element i of the iteration lies i elements from the first one, in an operand of these strides. An iteration
// has several dimensions, too, where it is another operand that does not step through them as through one.
inline bool is_contiguous(const int64_t* strides, const Iteration& iteration) {
  int64_t expected = 1;
  for (int d = iteration.dims - 1; d >= 0; --d) {
    if (iteration.sizes[d] != 1 && strides[d] != expected) return false;
    expected *= iteration.sizes[d];
  }
  return true;
}

// How far item i of an iteration lies from item 0, in the unit of the strides.
FUSED_LOSSES_HOST_DEVICE inline int64_t offset_of(int64_t i, int dims, const int64_t* sizes, const int64_t* strides) {
  int64_t offset = 0;
#if defined(__CUDACC__)
#pragma unroll 1  // divisions of 64 bits are long, and there is seldom one
#endif
  for (int d = dims - 1; d > 0; --d) {
    const int64_t rest = i / sizes[d];
    offset += (i - rest * sizes[d]) * strides[d];
    i = rest;
  }
  return dims > 0 ? offset + i * strides[0] : offset;
}

}  // namespace fused_losses

// The positions of a softmax, and their labels.
#pragma once

#include "../formulas/cross_entropy.h"
#include "group.cuh"
#include "lines.cuh"
#include "softmax_engine.h"

namespace fused_losses {

// What every kernel of softmax and of the negative log-likelihood is given. Rows are those of kernels whose classes lie
// side by side; other kernels work in tiles.
struct SoftmaxKernel {
  SoftmaxArguments tensors;
  Scaling scaling;
  LabelDivisor label_divisor;
  Reduced reduced;
  int lanes = 1;           // threads that share a row
  int parts = 1;           // warps that share the classes of a tile
  int64_t held_packs = 0;  // packs of a row in shared memory
};

struct Position {
  int64_t outer, inner;
};

// The position of number i.
__device__ inline Position position_of(const SoftmaxArguments& tensors, int64_t i) {
  if (tensors.outer == 1) return {0, i};
  if (tensors.inner == 1) return {i, 0};
  return {i / tensors.inner, i % tensors.inner};
}

__device__ inline int64_t offset_of(const SoftmaxArguments& tensors, const ClassStrides& strides,
                                    const Position& position) {
  if (tensors.outer_dims == 0) return position.inner * strides.inner;
  return offset_of(tensors, strides, position.outer, position.inner);
}

// The number at `offset` of a tensor that has one for each position or class; `absent`, if there is no tensor.
template <class T>
__device__ inline T number_at(const ClassTensor& tensor, int64_t offset, T absent) {
  return load_or(tensor.data, tensor.dtype, offset, absent);
}

__device__ inline int64_t positions_of(const SoftmaxArguments& tensors) { return tensors.outer * tensors.inner; }

// The class that a label names; -1, if it is ignored.
__device__ inline int64_t class_of(const SoftmaxArguments& tensors, int64_t label) {
  if (label == tensors.ignore_index) return -1;
  const bool in_bounds = label >= 0 && label < tensors.classes;
  check(in_bounds, "fused_losses: target is out of bounds");
  return in_bounds ? label : -1;
}

// The class of a position; -1, if it is ignored.
__device__ inline int64_t label_of(const SoftmaxArguments& tensors, const Position& position) {
  const ClassTensor& labels = tensors.labels;
  const int64_t offset = offset_of(tensors, labels.strides, position);
  return class_of(tensors, labels.dtype == ScalarType::Byte ? static_cast<const uint8_t*>(labels.data)[offset]
                                                            : static_cast<const int64_t*>(labels.data)[offset]);
}

// The sum of the weights of labels, or their number where there are no weights, without those that are ignored: of the
// part of them that thread `first` of `step` threads has.
__device__ inline double weight_of_labels(const SoftmaxArguments& tensors, int64_t first, int64_t step) {
  double sum = 0;
  int count = 0;
  const auto add = [&](int64_t y) {
    if (y < 0) return;
    if (tensors.weight.data) {
      sum += number_at(tensors.weight, y * tensors.weight.strides.classes, 1.0);
    } else {
      ++count;
    }
  };
  constexpr int kLabels = kPack<int64_t>;
  const ClassTensor& labels = tensors.labels;
  const bool packed =
      labels.dtype == ScalarType::Long && tensors.outer == 1 && labels.strides.inner == 1 && is_aligned(labels.data);
  const int64_t packs = packed ? positions_of(tensors) / kLabels : 0;
  for (int64_t p = first; p < packs; p += step) {
    const Elements<int64_t> some = load_pack<int64_t>(labels.data, p).elements();
    unrolled<kLabels>([&](int j) { add(class_of(tensors, some.at[j])); });
  }
  for (int64_t i = packs * kLabels + first; i < positions_of(tensors); i += step) {
    add(label_of(tensors, position_of(tensors, i)));
  }
  return sum + count;
}

__device__ inline double divisor_of(const SoftmaxKernel& kernel) {
  if (!kernel.label_divisor.by_each_block) return divisor_of(kernel.scaling);
  return Group(blockDim.x).sum(weight_of_labels(kernel.tensors, threadIdx.x, blockDim.x));
}

}  // namespace fused_losses

// The kernel for losses of vectors that are rows of whole packs, and stay in registers from the first pass to the
// second: nothing depends on where a vector begins or ends. The most common formulas have it; all have the one of
// vectors_engine.cuh.
#pragma once

#include "../formulas/vectors.h"
#include "group.cuh"
#include "rows.cuh"
#include "vectors_engine.h"

namespace fused_losses {

// What the kernels of this engine are given.
template <class Formula>
struct VectorsKernel {
  Formula formula;
  VectorsArguments tensors;
  Scaling scaling;
  Reduced reduced;
  int64_t shift;  // of a vector at offset 0 (lines.cuh)
  int lanes;      // threads that share a vector
  bool wants_derivatives;
};

template <class Formula>
inline constexpr bool kHasRowsKernel = false;
template <>
inline constexpr bool kHasRowsKernel<CosineEmbedding> = true;
template <>
inline constexpr bool kHasRowsKernel<TripletMargin<EuclideanDistance, std::false_type>> = true;

// How far number i of an operand, or where vector i of it begins, lies from its beginning. Where several dimensions
// have to be told apart, by a function, since divisions of 64 bits are long.
FUSED_LOSSES_NOINLINE static __device__ int64_t far_offset(const Operand& operand, const Iteration& vectors,
                                                           int64_t i) {
  return offset_of(operand, vectors, i);
}
__device__ inline int64_t vector_offset(const Operand& operand, const Iteration& vectors, int64_t i) {
  if (operand.contiguous) return i;
  return vectors.dims == 1 ? i * operand.strides[0] : far_offset(operand, vectors, i);
}
template <class T>
__device__ T number_of(const Operand& operand, const Iteration& vectors, int64_t i, T absent) {
  if (!operand.data) return absent;
  return load_as<T>(operand.data, operand.dtype, vector_offset(operand, vectors, i));
}

// Writes the loss of vector i, if losses are wanted, and returns it.
template <class T>
__device__ T write_value(const VectorsArguments& tensors, int64_t i, T value) {
  const Operand& values = tensors.values.starts;
  if (values.data) {
    store_as(const_cast<void*>(values.data), values.dtype, vector_offset(values, tensors.vectors, i), value);
  }
  return value;
}

// Each thread holds kHeld packs of each vector, and the threads of a group all packs.
template <class Formula, class S, int kHeld>
__global__ void __launch_bounds__(kThreads, kBlocks)
    vectors_rows_kernel(const __grid_constant__ VectorsKernel<Formula> kernel) {
  using T = Compute<S>;
  constexpr int kOperands = Formula::kOperands, kNumbers = Formula::kNumbers, kElements = kPack<S>;
  const double upstream = upstream_of(kernel.scaling);
  if (kernel.scaling.ready && upstream == 1) return;
  const double divisor = divisor_of(kernel.scaling);
  const T common_scale = static_cast<T>(upstream / divisor);
  const VectorsArguments& tensors = kernel.tensors;
  const Group group(kernel.lanes);
  const int count = static_cast<int>(tensors.vectors.count), in_block = group.in_block();
  double sum = 0;
#pragma unroll 1
  for (int first = blockIdx.x * in_block; first < count; first += gridDim.x * in_block) {
    const int own = first + static_cast<int>(threadIdx.x) / group.lanes();
    const bool live = own < count;
    const int vector = live ? own : 0;
    // The first pack of an operand that this thread holds.
    const auto begin = [&](const VectorOperand& operand) {
      const int64_t offset = static_cast<int64_t>(vector) * static_cast<int>(operand.starts.strides[0]);
      return static_cast<S*>(const_cast<void*>(operand.starts.data)) + offset + group.lane() * kElements;
    };
    Pack<S> held[kOperands][kHeld];
    unrolled<kOperands>([&](int k) {
      const S* const from = begin(tensors.operands[k]);
      unrolled<kHeld>([&](int h) { held[k][h] = load_pack<S>(from, h * group.lanes()); });
    });
    T target = 0;
    if constexpr (Formula::kHasTarget) target = number_of(tensors.operands[2].starts, tensors.vectors, vector, T(0));
    const T scale = common_scale * number_of(tensors.upstream.starts, tensors.vectors, vector, T(1));

    // Calls body(h, x) for each pack with its elements, x[k][j].
    const auto for_packs = [&](const auto& body) {
      unrolled<kHeld>([&](int h) {
        T x[kOperands][kElements];
        unrolled<kOperands>([&](int k) { unpack(held[k][h], x[k]); });
        body(h, x);
      });
    };
    T numbers[kNumbers]{};
    for_packs([&](int, T(*x)[kElements]) {
      unrolled<kElements>([&](int j) {
        T element[kOperands];
        unrolled<kOperands>([&](int k) { element[k] = x[k][j]; });
        kernel.formula.add(element, numbers);
      });
    });
    group.merge_all<kNumbers>(numbers,
                              [](const T* other, T* own) { unrolled<kNumbers>([&](int k) { own[k] += other[k]; }); });
    Slope<T> slopes[Formula::kSlopes]{};
    const T value = kernel.formula.finish(numbers, target, scale, slopes);
    if (live && group.leads()) sum += write_value(tensors, vector, value);
    if (!kernel.wants_derivatives) continue;

    unrolled<kOperands>([&](int k) { unrolled<kHeld>([&](int h) { held[k][h].forget(); }); });
    S* to[kOperands];
    bool wanted[kOperands];
    unrolled<kOperands>([&](int k) {
      to[k] = begin(tensors.derivatives[k]);
      wanted[k] = live && tensors.derivatives[k].starts.data;
    });
    for_packs([&](int h, T(*x)[kElements]) {
      unrolled<kElements>([&](int j) {
        T element[kOperands], made[kOperands];
        unrolled<kOperands>([&](int k) { element[k] = x[k][j]; });
        kernel.formula.derivatives(slopes, element, made);
        unrolled<kOperands>([&](int k) { x[k][j] = made[k]; });
      });
      unrolled<kOperands>([&](int k) {
        if (wanted[k]) store_pack(to[k], h * group.lanes(), packed<S>(x[k]));
      });
    });
  }
  if (kernel.reduced.loss) finish(sum, kernel.reduced, divisor);
}

// Launches the kernel where a power of two threads, up to a block, hold all of a vector: 3 or 4 packs each. Returns
// whether it did.
template <class S, class Formula>
bool launch_vectors_rows(VectorsKernel<Formula>& kernel, const Queue& queue) {
  const int64_t packs = kernel.tensors.length / kPack<S>;
  const auto launch_for = [&](auto held) {
    kernel.lanes = lanes_for(packs, held, kThreads);
    if (int64_t{held} * kernel.lanes != packs) return false;
    const int in_block = kThreads / kernel.lanes;
    launch(vectors_rows_kernel<Formula, S, held>, queue,
           row_blocks((kernel.tensors.vectors.count + in_block - 1) / in_block, kBlocks), kThreads, kernel);
    return true;
  };
  return launch_for(std::integral_constant<int, 4>()) || launch_for(std::integral_constant<int, 3>());
}

}  // namespace fused_losses

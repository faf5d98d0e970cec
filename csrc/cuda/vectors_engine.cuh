// The engine for losses of vectors on a GPU: a group of threads adds up the numbers of a vector, merges them, and makes
// the derivatives from elements that have stayed in registers. Those of long vectors are read again.
//
// To be read from the end: vectors() chooses how elements are accessed (lines.cuh), launch_vectors() how many threads
// share a vector, vectors_kernel() gives vectors to groups of threads, and OneVector does one vector, in two passes.
#pragma once

#include "../formulas/vectors.h"
#include "group.cuh"
#include "lines.cuh"
#include "vectors_engine.h"

namespace fused_losses {

// Packs of each operand that a thread holds. Four packs of three operands take 48 of its 128 registers; float64 and
// powers need many others, so there it is one.
template <class Formula, class T>
inline constexpr int kHeldVectorPacks = sizeof(T) == sizeof(double) || Formula::kTakesPowers ? 1 : 4;

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

template <class Formula, class Access>
class OneVector {
  using T = typename Access::T;
  using Held = typename Access::Held;
  static constexpr int kOperands = Formula::kOperands;
  static constexpr int kNumbers = Formula::kNumbers;
  static constexpr int kElements = Access::kElements;
  static constexpr int kHeld = kHeldVectorPacks<Formula, T>;

 public:
  __device__ OneVector(const VectorsKernel<Formula>& kernel, const Group& group, T scale)
      : kernel_(kernel), tensors_(kernel.tensors), group_(group), scale_(scale) {}

  // Writes the results of a vector; returns its loss to one thread of the group, and 0 to others. Called by all threads
  // of the block: beyond the last vector, with one that has no elements.
  __device__ T operator()(int64_t vector) {
    const bool live = vector < tensors_.vectors.count;
    Line x[kOperands], derivatives[kOperands];
    unrolled<kOperands>([&](int k) {
      x[k] = line(tensors_.operands[k], vector, live);
      derivatives[k] = line(tensors_.derivatives[k], vector, live);
    });
    const Span<int64_t> span{(kernel_.shift + x[0].offset) & (kElements - 1), live ? tensors_.length : 0};
    // The most packs that a vector can have, whatever its shift, so that all threads of a block loop equally often.
    const int64_t packs = (tensors_.length + 2 * (kElements - 1)) / kElements;
    const int64_t step = static_cast<int64_t>(kHeld) * group_.lanes();

    Held held[kOperands][kHeld];
    T numbers[kNumbers]{};
    if constexpr (!Formula::kAdds) kernel_.formula.start(numbers);
    for (int64_t base = 0; base < packs; base += step) {
      load(x, span, base, held);
      // Few terms are added up before they go to the sum of such sums, so that rounding errors stay small.
      T some[kNumbers]{};
      if constexpr (!Formula::kAdds) kernel_.formula.start(some);
      add(span, base, held, some);
      merge(some, numbers);
    }
    group_.merge_all<kNumbers>(numbers, [&](const T* other, T* own) { merge(other, own); });

    T target = 0, scale = scale_;
    if constexpr (Formula::kHasTarget) {
      if (live) target = load_element(tensors_.operands[2].starts, tensors_.vectors, vector, T(0));
    }
    if (live) scale *= load_element(tensors_.upstream.starts, tensors_.vectors, vector, T(1));
    Slope<T> slopes[Formula::kSlopes]{};
    const T value = kernel_.formula.finish(numbers, target, scale, slopes);
    unrolled<kOperands>([&](int k) { unrolled<kHeld>([&](int h) { held[k][h].forget(); }); });
    if (kernel_.wants_derivatives) {
      for (int64_t base = (packs - 1) / step * step; base >= 0; base -= step) {
        if (packs > step) load(x, span, base, held);
        differentiate(slopes, span, base, held, derivatives);
      }
    }
    if (!live || !group_.leads()) return T(0);
    const Operand& values = tensors_.values.starts;
    if (values.data)
      store_as(const_cast<void*>(values.data), values.dtype, offset_of(values, tensors_.vectors, vector), value);
    return value;
  }

 private:
  __device__ Line line(const VectorOperand& operand, int64_t vector, bool live) const {
    const int64_t offset = live && operand.starts.data ? offset_of(operand.starts, tensors_.vectors, vector) : 0;
    return {const_cast<void*>(operand.starts.data), operand.starts.dtype, offset, operand.stride};
  }

  // Calls body(h, p) for every pack that this thread holds, from pack `base` on.
  template <class Body>
  __device__ void for_packs(const Span<int64_t>& span, int64_t base, const Body& body) const {
    const int64_t packs = span.packs<kElements>();
    unrolled<kHeld>([&](int h) {
      const int64_t p = base + h * group_.lanes() + group_.lane();
      if (p < packs) body(h, p);
    });
  }

  __device__ void load(const Line* x, const Span<int64_t>& span, int64_t base, Held (*held)[kHeld]) const {
    for_packs(span, base, [&](int h, int64_t p) {
      unrolled<kOperands>([&](int k) { held[k][h] = Access::load(x[k], span, p, T(0)); });
    });
  }

  // Elements of all operands: x[k][j].
  __device__ void unpack(const Held (*held)[kHeld], int h, T (*x)[kElements]) const {
    unrolled<kOperands>([&](int k) { Access::unpack(held[k][h], x[k]); });
  }

  __device__ void add(const Span<int64_t>& span, int64_t base, const Held (*held)[kHeld], T* numbers) const {
    for_packs(span, base, [&](int h, int64_t p) {
      const int64_t first = p * kElements - span.shift;
      const bool whole = span.has_pack<kElements>(first);
      T x[kOperands][kElements];
      unpack(held, h, x);
      unrolled<kElements>([&](int j) {
        T element[kOperands];
        unrolled<kOperands>([&](int k) { element[k] = x[k][j]; });
        if (whole || span.has(first + j)) kernel_.formula.add(element, numbers);
      });
    });
  }

  __device__ void differentiate(const Slope<T>* slopes, const Span<int64_t>& span, int64_t base,
                                const Held (*held)[kHeld], const Line* derivatives) const {
    for_packs(span, base, [&](int h, int64_t p) {
      T x[kOperands][kElements];
      unpack(held, h, x);
      unrolled<kElements>([&](int j) {
        T element[kOperands], made[kOperands];
        unrolled<kOperands>([&](int k) { element[k] = x[k][j]; });
        kernel_.formula.derivatives(slopes, element, made);
        unrolled<kOperands>([&](int k) { x[k][j] = made[k]; });
      });
      unrolled<kOperands>([&](int k) {
        if (derivatives[k].data) Access::store(derivatives[k], span, p, x[k]);
      });
    });
  }

  __device__ void merge(const T* other, T* own) const {
    if constexpr (Formula::kAdds) {
      for (int k = 0; k < kNumbers; ++k) own[k] += other[k];
    } else {
      kernel_.formula.merge(other, own);
    }
  }

  const VectorsKernel<Formula>& kernel_;
  const VectorsArguments& tensors_;
  const Group& group_;
  const T scale_;
};

template <class Formula, class Access>
__global__ void __launch_bounds__(kThreads, kBlocks)
    vectors_kernel(const __grid_constant__ VectorsKernel<Formula> kernel) {
  using T = typename Access::T;
  const double upstream = upstream_of(kernel.scaling);
  if (kernel.scaling.ready && upstream == 1) return;
  const double divisor = divisor_of(kernel.scaling);
  const Group group(kernel.lanes);
  OneVector<Formula, Access> one_vector(kernel, group, static_cast<T>(upstream / divisor));
  const int64_t step = static_cast<int64_t>(gridDim.x) * group.in_block();
  double sum = 0;
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * group.in_block(); first < kernel.tensors.vectors.count;
       first += step) {
    sum += one_vector(group.row(first));
  }
  if (kernel.reduced.loss) finish(sum, kernel.reduced, divisor);
}

template <class Formula, class Access>
void launch_vectors(VectorsKernel<Formula> kernel, const Queue& queue) {
  const int64_t packs = kernel.tensors.length / Access::kElements + 1;
  kernel.lanes = lanes_for(packs, kHeldVectorPacks<Formula, typename Access::T>, kThreads);
  const int64_t in_block = kThreads / kernel.lanes;
  launch(vectors_kernel<Formula, Access>, queue,
         blocks_for(queue, (kernel.tensors.vectors.count + in_block - 1) / in_block, kThreads), kThreads, kernel);
}

template <class Formula>
void vectors(const Formula& formula, const VectorsArguments& arguments, const Scaling& scaling, const Reduced& reduced,
             const Queue& queue) {
  Alignment alignment(arguments.operands[0].starts.dtype);
  bool any_float64 = false, wants_derivatives = false;
  const auto look = [&](const VectorOperand& operand) {
    if (!operand.starts.data) return;
    alignment.add(operand.starts.data, operand.starts.dtype, operand.stride, operand.starts.strides,
                  arguments.vectors.dims);
    any_float64 |= operand.starts.dtype == ScalarType::Double;
  };
  for (int k = 0; k < Formula::kOperands; ++k) {
    look(arguments.operands[k]);
    look(arguments.derivatives[k]);
    wants_derivatives |= arguments.derivatives[k].starts.data != nullptr;
  }
  const VectorsKernel<Formula> kernel{formula, arguments, scaling, reduced, alignment.shift(), 0, wants_derivatives};
  if (alignment.is_packed()) {
    with_storage(arguments.operands[0].starts.dtype,
                 [&](auto storage) { launch_vectors<Formula, Packed<decltype(storage)>>(kernel, queue); });
  } else if (any_float64) {
    launch_vectors<Formula, Apart<double>>(kernel, queue);
  } else {
    launch_vectors<Formula, Apart<float>>(kernel, queue);
  }
}

}  // namespace fused_losses

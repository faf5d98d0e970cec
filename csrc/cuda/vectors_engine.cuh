// The engine for losses of vectors on a GPU: a group of threads adds up the numbers of a vector, merges them, and makes
// the derivatives from elements that have stayed in registers. Those of long vectors are read again.
//
// To be read from the end: vectors() chooses how elements are accessed (lines.cuh, rows.cuh), launch_vectors() how many
// threads share a vector, vectors_kernel() gives vectors to groups of threads, and OneVector does one vector, in two
// passes.
#pragma once

#include "vectors_rows.cuh"

namespace fused_losses {

// Packs of each operand that a thread holds. Four packs of three operands take 48 of its 128 registers; float64 and
// powers need many others, so there it is one.
template <class Formula, class T>
inline constexpr int kHeldVectorPacks = sizeof(T) == sizeof(double) || Formula::kTakesPowers ? 1 : 4;

template <class Formula, class Access>
class OneVector {
  using T = typename Access::T;
  using Held = typename Access::Held;
  static constexpr int kOperands = Formula::kOperands;
  static constexpr int kNumbers = Formula::kNumbers;
  static constexpr int kElements = Access::kElements;
  static constexpr int kHeld = kHeldVectorPacks<Formula, T>;
  // Vectors in packs have fewer than 2^30 elements.
  using Index = std::conditional_t<kElements == 1, int64_t, int>;
  using Span = fused_losses::Span<Index>;

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
    const Span span{static_cast<Index>((kernel_.shift + x[0].offset) & (kElements - 1)),
                    live ? static_cast<Index>(tensors_.length) : 0};
    // The same for all threads of a block, so that they loop equally often.
    const Index packs = static_cast<Index>(most_packs<Access>(tensors_.length));
    const Index step = kHeld * group_.lanes();
    T target = 0, scale = scale_;
    if constexpr (Formula::kHasTarget) {
      if (live) target = number_of(tensors_.operands[2].starts, tensors_.vectors, vector, T(0));
    }
    if (live) scale *= number_of(tensors_.upstream.starts, tensors_.vectors, vector, T(1));

    Held held[kOperands][kHeld];
    T numbers[kNumbers]{};
    if constexpr (!Formula::kAdds) kernel_.formula.start(numbers);
    for (Index base = 0; base < packs; base += step) {
      load(x, span, base, held);
      // Few terms are added up before they go to the sum of such sums, so that rounding errors stay small.
      T some[kNumbers]{};
      if constexpr (!Formula::kAdds) kernel_.formula.start(some);
      add(span, base, held, some);
      merge(some, numbers);
    }
    group_.merge_all<kNumbers>(numbers, [&](const T* other, T* own) { merge(other, own); });

    Slope<T> slopes[Formula::kSlopes]{};
    const T value = kernel_.formula.finish(numbers, target, scale, slopes);
    unrolled<kOperands>([&](int k) { unrolled<kHeld>([&](int h) { held[k][h].forget(); }); });
    if (kernel_.wants_derivatives) {
      for (Index base = (packs - 1) / step * step; base >= 0; base -= step) {
        if (packs > step) load(x, span, base, held);
        differentiate(slopes, span, base, held, derivatives);
      }
    }
    return live && group_.leads() ? write_value(tensors_, vector, value) : T(0);
  }

 private:
  __device__ Line line(const VectorOperand& operand, int64_t vector, bool live) const {
    const Operand& starts = operand.starts;
    const int64_t offset = live && starts.data ? vector_offset(starts, tensors_.vectors, vector) : 0;
    return {const_cast<void*>(starts.data), starts.dtype, offset, operand.stride};
  }

  // Calls body(h, p) for every pack that this thread holds, from pack `base` on.
  template <class Body>
  __device__ void for_packs(const Span& span, Index base, const Body& body) const {
    const Index packs = span.template packs<kElements>();
    unrolled<kHeld>([&](int h) {
      const Index p = base + h * group_.lanes() + group_.lane();
      if (p < packs) body(h, p);
    });
  }

  __device__ void load(const Line* x, const Span& span, Index base, Held (*held)[kHeld]) const {
    for_packs(span, base, [&](int h, Index p) {
      unrolled<kOperands>([&](int k) { held[k][h] = Access::load(x[k], span, p, T(0)); });
    });
  }

  // Elements of all operands: x[k][j].
  __device__ void unpack(const Held (*held)[kHeld], int h, T (*x)[kElements]) const {
    unrolled<kOperands>([&](int k) { Access::unpack(held[k][h], x[k]); });
  }

  __device__ void add(const Span& span, Index base, const Held (*held)[kHeld], T* numbers) const {
    for_packs(span, base, [&](int h, Index p) {
      const Index first = p * kElements - span.shift;
      const bool whole = span.template has_pack<kElements>(first);
      T x[kOperands][kElements];
      unpack(held, h, x);
      unrolled<kElements>([&](int j) {
        T element[kOperands];
        unrolled<kOperands>([&](int k) { element[k] = x[k][j]; });
        if (whole || span.has(first + j)) kernel_.formula.add(element, numbers);
      });
    });
  }

  __device__ void differentiate(const Slope<T>* slopes, const Span& span, Index base, const Held (*held)[kHeld],
                                const Line* derivatives) const {
    for_packs(span, base, [&](int h, Index p) {
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
  kernel.lanes =
      lanes_for(most_packs<Access>(kernel.tensors.length), kHeldVectorPacks<Formula, typename Access::T>, kThreads);
  const int64_t in_block = kThreads / kernel.lanes;
  launch(vectors_kernel<Formula, Access>, queue,
         row_blocks((kernel.tensors.vectors.count + in_block - 1) / in_block, kBlocks), kThreads, kernel);
}

template <class Formula>
void vectors(const Formula& formula, const VectorsArguments& arguments, const Scaling& scaling, const Reduced& reduced,
             const Queue& queue) {
  const Operand& first = arguments.operands[0].starts;
  Alignment alignment(first.dtype);
  bool any_float64 = false, wants_derivatives = false;
  // Whether vectors are rows of matrices, whose numbers and distances fit into 32 bits.
  bool are_rows = arguments.vectors.dims == 1 && arguments.vectors.count <= 1 << 30;
  const auto look = [&](const VectorOperand& operand) {
    const Operand& starts = operand.starts;
    if (!starts.data) return;
    alignment.add(starts.data, starts.dtype, operand.stride, starts.strides, arguments.vectors.dims);
    any_float64 |= starts.dtype == ScalarType::Double;
    are_rows = are_rows && !starts.contiguous && std::abs(starts.strides[0]) <= INT32_MAX;
  };
  for (int k = 0; k < Formula::kOperands; ++k) {
    look(arguments.operands[k]);
    look(arguments.derivatives[k]);
    wants_derivatives |= arguments.derivatives[k].starts.data != nullptr;
  }
  VectorsKernel<Formula> kernel{formula, arguments, scaling, reduced, alignment.shift(), 0, wants_derivatives};
  if (!alignment.is_packed() || arguments.length >= int64_t{1} << 30) {
    if (any_float64) return launch_vectors<Formula, Apart<double>>(kernel, queue);
    return launch_vectors<Formula, Apart<float>>(kernel, queue);
  }
  are_rows = are_rows && are_whole(alignment, first.dtype, arguments.length, first.strides, 1);
  with_storage(first.dtype, [&](auto storage) {
    using S = decltype(storage);
    if constexpr (kHasRowsKernel<Formula> && !std::is_same_v<S, double>) {
      if (are_rows && launch_vectors_rows<S>(kernel, queue)) return;
    }
    launch_vectors<Formula, Packed<S>>(kernel, queue);
  });
}

}  // namespace fused_losses

// The pointwise engine on a GPU.
//
// To be read from the end: pointwise() is what operators call; it chooses packs of 128 bits where all tensors allow.
// pointwise_kernel() gives each thread one pack or element after the other; one_pack() and one_element() load and store
// them; PointwiseElement is what happens to one element, around the formula (formulas/*.h).
//
// Included by one file per group of formulas (pointwise_*.cu), so that groups compile side by side.
#pragma once

#include "../formulas/pointwise.h"
#include "pointwise_engine.h"
#include "reduce.cuh"

namespace fused_losses {

template <class Formula>
struct PointwiseKernel {
  Formula formula;
  PointwiseArguments tensors;
  Scaling scaling;
  Reduced reduced;
};

// What is computed for one element, in type T: from an element of each operand and the factors, value and derivatives.
template <class Formula, class T>
class PointwiseElement {
 public:
  __device__ PointwiseElement(const PointwiseKernel<Formula>& kernel, T scale)
      : kernel_(kernel), scale_(scale), ignored_(static_cast<T>(kernel.tensors.ignored)) {}

  __device__ Terms<T, Formula::kDerivatives> operator()(const T* x, const T* factors) const {
    if constexpr (Formula::kOptionalThird) {
      if (!kernel_.tensors.operands[2].data) return finish(x, factors, false_type{});
    }
    return finish(x, factors, std::bool_constant<Formula::kOperands == 3>{});
  }

 private:
  using false_type = std::false_type;

  template <bool kThird>
  __device__ Terms<T, Formula::kDerivatives> finish(const T* x, const T* factors, std::bool_constant<kThird>) const {
    const bool counts = !(kernel_.tensors.has_ignored && x[1] == ignored_);
    const auto call = [&](const auto& function) {
      if constexpr (kThird) {
        return function(x[0], x[1], x[2]);
      } else {
        return function(x[0], x[1]);
      }
    };
    if constexpr (Formula::kConditions > 0) {
      unrolled<Formula::kConditions>([&](int k) {
        const bool holds = call([&](auto... each) { return Formula::holds(k, each...); });
        check(holds || !counts, Formula::refusal(k));
      });
    }
    auto terms = call([&](auto... each) { return kernel_.formula.terms(each...); });
    const T factor = factors[0] * factors[1];
    const T slope = scale_ * factor;
    terms.value = counts ? terms.value * factor : T(0);
    unrolled<Formula::kDerivatives>([&](int k) {
      const T scaled =
          call([&](auto... each) { return kernel_.formula.scaled(k, terms.derivative[k], slope, each...); });
      terms.derivative[k] = counts ? scaled : T(0);
    });
    return terms;
  }

  const PointwiseKernel<Formula>& kernel_;
  const T scale_, ignored_;
};

// Element i, by itself. Returns its value.
template <class Formula, class T>
__device__ inline T one_element(const PointwiseElement<Formula, T>& element, const PointwiseArguments& tensors,
                                int64_t i) {
  T x[3], factors[2];
  for (int k = 0; k < 3; ++k) x[k] = load_element(tensors.operands[k], tensors.iteration, i, T(0));
  for (int k = 0; k < 2; ++k) factors[k] = load_element(tensors.factors[k], tensors.iteration, i, T(1));
  const auto terms = element(x, factors);
  for (int k = 0; k < Formula::kDerivatives; ++k) {
    const Result& to = tensors.derivatives[k];
    if (to.data) store_as(to.data, to.dtype, i, terms.derivative[k]);
  }
  if (tensors.values.data) store_as(tensors.values.data, tensors.values.dtype, i, terms.value);
  return terms.value;
}

// Pack p of every tensor, which is kPack<S> elements. Returns the sum of their values.
template <class S, class Formula, class T>
__device__ inline T one_pack(const PointwiseElement<Formula, T>& element, const PointwiseArguments& tensors,
                             int64_t p) {
  Elements<S> operands[3], factors[2], values, derivatives[3];
  unrolled<3>([&](int k) {
    if (tensors.operands[k].data) operands[k] = load_pack<S>(tensors.operands[k].data, p).elements();
  });
  unrolled<2>([&](int k) {
    if (tensors.factors[k].data) factors[k] = load_pack<S>(tensors.factors[k].data, p).elements();
  });
  T sum = 0;
  unrolled<kPack<S>>([&](int i) {
    T x[3], factor[2];
    unrolled<3>([&](int k) { x[k] = tensors.operands[k].data ? static_cast<T>(operands[k].at[i]) : T(0); });
    unrolled<2>([&](int k) { factor[k] = tensors.factors[k].data ? static_cast<T>(factors[k].at[i]) : T(1); });
    const auto terms = element(x, factor);
    sum += terms.value;
    values.at[i] = static_cast<S>(terms.value);
    unrolled<Formula::kDerivatives>([&](int k) { derivatives[k].at[i] = static_cast<S>(terms.derivative[k]); });
  });
  unrolled<Formula::kDerivatives>([&](int k) {
    if (tensors.derivatives[k].data) store_pack(tensors.derivatives[k].data, p, Pack<S>(derivatives[k]));
  });
  if (tensors.values.data) store_pack(tensors.values.data, p, Pack<S>(values));
  return sum;
}

// If S is a storage type, all tensors are contiguous, aligned and of that type: a thread takes a pack of each in every
// step, and the elements after the last pack are done one by one. If S is void, all are, in type T.
template <class Formula, class T, class S>
__global__ void __launch_bounds__(kThreads, kBlocks)
    pointwise_kernel(const __grid_constant__ PointwiseKernel<Formula> kernel) {
  const double upstream = upstream_of(kernel.scaling);
  if (kernel.scaling.ready && upstream == 1) return;
  const double divisor = divisor_of(kernel.scaling);
  const PointwiseElement<Formula, T> element(kernel, static_cast<T>(upstream / divisor));
  const PointwiseArguments& tensors = kernel.tensors;
  const int64_t count = tensors.iteration.count;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  T sum = 0;
  int64_t done = 0;
  if constexpr (!std::is_void_v<S>) {
    const int64_t packs = count / kPack<S>;
    for (int64_t p = first; p < packs; p += step) sum += one_pack<S>(element, tensors, p);
    done = packs * kPack<S>;
  }
  for (int64_t i = done + first; i < count; i += step) sum += one_element(element, tensors, i);
  if (kernel.reduced.loss) finish(sum, kernel.reduced, divisor);
}

// Whether every tensor is contiguous, aligned, and of the first one's type.
inline bool is_packed(const PointwiseArguments& arguments) {
  const ScalarType dtype = arguments.operands[0].dtype;
  bool packed = true;
  const auto look = [&](const void* data, ScalarType of, bool contiguous) {
    packed = packed && (!data || (of == dtype && contiguous && is_aligned(data)));
  };
  for (const Operand& operand : arguments.operands) look(operand.data, operand.dtype, operand.contiguous);
  for (const Operand& factor : arguments.factors) look(factor.data, factor.dtype, factor.contiguous);
  for (const Result& derivative : arguments.derivatives) look(derivative.data, derivative.dtype, true);
  look(arguments.values.data, arguments.values.dtype, true);
  return packed;
}

inline bool has_double(const PointwiseArguments& arguments) {
  return std::any_of(std::begin(arguments.operands), std::end(arguments.operands),
                     [](const Operand& x) { return x.data && x.dtype == ScalarType::Double; });
}

template <class Formula, class T, class S>
void launch_pointwise(const PointwiseKernel<Formula>& kernel, int in_a_step, const Queue& queue) {
  const int64_t steps = (kernel.tensors.iteration.count + in_a_step - 1) / in_a_step;
  launch(pointwise_kernel<Formula, T, S>, queue, blocks_for(queue, (steps + kThreads - 1) / kThreads, kThreads),
         kThreads, kernel);
}

template <class Formula>
void pointwise(const PointwiseArguments& arguments, const Scaling& scaling, const Reduced& reduced,
               const Queue& queue) {
  const PointwiseKernel<Formula> kernel{Formula(arguments.parameters), arguments, scaling, reduced};
  if (is_packed(arguments)) {
    with_storage(arguments.operands[0].dtype, [&](auto storage) {
      using S = decltype(storage);
      launch_pointwise<Formula, Compute<S>, S>(kernel, kPack<S>, queue);
    });
  } else if (has_double(arguments)) {
    launch_pointwise<Formula, double, void>(kernel, 1, queue);
  } else {
    launch_pointwise<Formula, float, void>(kernel, 1, queue);
  }
}

}  // namespace fused_losses

#define FUSED_LOSSES_INSTANTIATE_POINTWISE(name, Formula) \
  template void pointwise<Formula>(const PointwiseArguments&, const Scaling&, const Reduced&, const Queue&);

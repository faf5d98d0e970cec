// The numerators e^(x - m) of a softmax, and the sums that a thread makes of them.
#pragma once

#include "rounded.cuh"
#include "softmax_targets.cuh"

namespace fused_losses {

// Sums over a part of a row, with t = x - m or log2(e) (x - m), whichever Numerators::exponent() gives.
template <class T>
struct SoftmaxSums {
  T e = 0;     // of numerators
  T mass = 0;  // of soft targets q, which count as 1 where all are equal
  T qt = 0;    // of q t
  T et = 0;    // of numerators times t

  SoftmaxSums() = default;
  __device__ SoftmaxSums(T e_, T mass_, T qt_, T et_) : e(e_), mass(mass_), qt(qt_), et(et_) {}

  __device__ void add(const SoftmaxSums& other) {
    e += other.e;
    mass += other.mass;
    qt += other.qt;
    et += other.et;
  }
};

// Numerators by general functions: t = x - m.
template <class T, bool kFused>
class Numerators {
 public:
  __device__ explicit Numerators(T reference) : reference_(reference), subtracted_(finite_reference(reference)) {}

  __device__ T exponent(T x) const { return x - subtracted_; }
  __device__ T power(T t) const { return exp(t); }
  __device__ T unit() const { return 1; }  // the power of the exponent of m

  __device__ SoftmaxState<T> state(const SoftmaxSums<T>& sums) const {
    return {reference_, sums.e, sums.mass, sums.qt, sums.et};
  }
  __device__ SoftmaxSums<T> sums(const SoftmaxState<T>& state) const {
    return {state.sum, state.mass, state.cross, state.excess};
  }

 private:
  T reference_, subtracted_;
};

// Numerators by one multiply-add and the GPU's own instruction for 2^t, where logits and gradients have 16 bits: t =
// L x - c, where L is log2(e) and c is L m, rounded. All numerators share the factor 2^(L m - c), unit(), which differs
// from 1 by less than a tenth where m is below 2^20. From there on, L is 1 instead: neighbours of 8 bits, the
// significand of bfloat16, are 2^12 apart, so that 2^(x - m) and e^(x - m) are both 0 if they are not both 1.
template <>
class Numerators<float, true> {
 public:
  __device__ explicit Numerators(float reference) : reference_(reference) {
    const float m = finite_reference(reference);
    const bool huge = abs(m) >= 1048576.0f;
    factor_ = huge ? 1.0f : approximate::kLog2e;
    offset_ = -(m * factor_);
    residual_ = multiply_add(m, factor_, offset_);
    // An infinite reference makes this NaN, as it does the numerators.
    unit_ = approximate::exp2(residual_);
  }

  __device__ float exponent(float x) const { return multiply_add(x, factor_, offset_); }
  __device__ float power(float t) const { return approximate::exp2(t); }
  __device__ float unit() const { return unit_; }

  __device__ SoftmaxState<float> state(const SoftmaxSums<float>& sums) const {
    return {reference_, divide_by_normal(sums.e, unit_), sums.mass,
            divide_by_normal(sums.qt - sums.mass * residual_, factor_)};
  }
  __device__ SoftmaxSums<float> sums(const SoftmaxState<float>& state) const {
    return {state.sum * unit_, state.mass, multiply_add(state.cross, factor_, state.mass * residual_), 0};
  }

 private:
  float reference_, factor_, offset_, residual_, unit_;
};

}  // namespace fused_losses

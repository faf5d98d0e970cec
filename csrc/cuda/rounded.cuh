// Arithmetic for operands and results of 16 bits: floats for which the functions of formulas/math.h are a GPU's
// approximate units.
//
// An approximation's error is at most half of a unit in the last place of a result of type S, at arguments of any
// size: where a unit's error is absolute, small arguments take another way.
#pragma once

#include "../formulas/math.h"
#include "launch.h"

namespace fused_losses {

namespace approximate {

// 2^x and log2(x), each a single instruction: right to 2 units in the last place, log2 between 1/2 and 2 to 2^-22.
// Subnormal numbers count as 0, but for log2(), which scales them: bfloat16 has some.
#if defined(FUSED_LOSSES_CUDA_ON_CPU)
inline float exp2(float x) { return std::exp2(x); }
inline float log2(float x) { return std::log2(x); }
inline float log2_of_normal(float x) { return std::log2(x); }
#else
__device__ inline float exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline float log2(float x) {
  float y;
  asm("lg2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline float log2_of_normal(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
#endif

inline constexpr float kLog2e = 1.44269504088896341f;
inline constexpr float kLn2 = 0.693147180559945309f;

}  // namespace approximate

template <class S>
struct Rounded {
  float value;

  Rounded() = default;
  template <class Number>
  __device__ explicit Rounded(Number number) : value(static_cast<float>(number)) {}
  __device__ explicit operator float() const { return value; }
  __device__ explicit operator double() const { return value; }
};

template <class S>
struct Lane<Rounded<S>> {
  using type = float;
};

#define FUSED_LOSSES_ROUNDED \
  template <class S>         \
  __device__ inline

FUSED_LOSSES_ROUNDED Rounded<S> operator+(Rounded<S> a, Rounded<S> b) { return Rounded<S>(a.value + b.value); }
FUSED_LOSSES_ROUNDED Rounded<S> operator-(Rounded<S> a, Rounded<S> b) { return Rounded<S>(a.value - b.value); }
FUSED_LOSSES_ROUNDED Rounded<S> operator*(Rounded<S> a, Rounded<S> b) { return Rounded<S>(a.value * b.value); }
FUSED_LOSSES_ROUNDED Rounded<S> operator-(Rounded<S> a) { return Rounded<S>(-a.value); }
FUSED_LOSSES_ROUNDED Rounded<S>& operator+=(Rounded<S>& a, Rounded<S> b) { return a = a + b; }
FUSED_LOSSES_ROUNDED bool operator==(Rounded<S> a, Rounded<S> b) { return a.value == b.value; }
FUSED_LOSSES_ROUNDED bool operator!=(Rounded<S> a, Rounded<S> b) { return a.value != b.value; }
FUSED_LOSSES_ROUNDED bool operator<(Rounded<S> a, Rounded<S> b) { return a.value < b.value; }
FUSED_LOSSES_ROUNDED bool operator>(Rounded<S> a, Rounded<S> b) { return a.value > b.value; }
FUSED_LOSSES_ROUNDED bool operator<=(Rounded<S> a, Rounded<S> b) { return a.value <= b.value; }
FUSED_LOSSES_ROUNDED bool operator>=(Rounded<S> a, Rounded<S> b) { return a.value >= b.value; }

FUSED_LOSSES_ROUNDED Rounded<S> select(bool mask, Rounded<S> a, Rounded<S> b) { return mask ? a : b; }
FUSED_LOSSES_ROUNDED Rounded<S> abs(Rounded<S> x) { return Rounded<S>(std::fabs(x.value)); }
FUSED_LOSSES_ROUNDED Rounded<S> multiply_sign(Rounded<S> x, Rounded<S> sign) {
  return Rounded<S>(multiply_sign(x.value, sign.value));
}
FUSED_LOSSES_ROUNDED Rounded<S> multiply_add(Rounded<S> a, Rounded<S> b, Rounded<S> c) {
  return Rounded<S>(multiply_add(a.value, b.value, c.value));
}
FUSED_LOSSES_ROUNDED bool is_in_unit(Rounded<S> x) { return is_in_unit(x.value); }

// The square of e^(x / 2): the unit takes subnormal results for 0, which bfloat16 has some of, and a product does not.
FUSED_LOSSES_ROUNDED Rounded<S> exp(Rounded<S> x) {
  const float root = approximate::exp2(x.value * (approximate::kLog2e / 2));
  return Rounded<S>(root * root);
}
FUSED_LOSSES_ROUNDED Rounded<S> exp_below_88(Rounded<S> x) { return exp(x); }

FUSED_LOSSES_ROUNDED Rounded<S> log(Rounded<S> x) { return Rounded<S>(approximate::log2(x.value) * approximate::kLn2); }
// Of 0, the logarithm is -infinity.
FUSED_LOSSES_ROUNDED Rounded<S> pow_of_unit(Rounded<S> x, Rounded<S> p) {
  const float root = approximate::exp2(p.value * 0.5f * approximate::log2_of_normal(x.value));
  return Rounded<S>(p.value == 0 ? 1.0f : root * root);
}

FUSED_LOSSES_ROUNDED Rounded<S> log_of_normal(Rounded<S> x) {
  return Rounded<S>(approximate::log2_of_normal(x.value) * approximate::kLn2);
}

// A factor of 2^16 makes all of bfloat16's subnormal numbers normal, and the logarithm of 1 stays 0: the error of
// 16 2^-22 that it brings is a quarter of a unit of the smallest logarithm besides, that of 1 - 2^-8.
FUSED_LOSSES_ROUNDED Rounded<S> log_of_unit(Rounded<S> x) {
  if constexpr (!std::is_same_v<S, BFloat16>) return log(x);
  return Rounded<S>(
      multiply_add(approximate::log2_of_normal(x.value * 65536.0f), approximate::kLn2, -16 * approximate::kLn2));
}

// Below 2^-11, log(1 - x) is -x itself, but for half of x^2; from there on, the unit's absolute error of 2^-22 is less.
FUSED_LOSSES_ROUNDED Rounded<S> log_of_complement(Rounded<S> x) {
  const float log = approximate::log2_of_normal(1 - x.value) * approximate::kLn2;
  return Rounded<S>(x.value < 4.8828125e-4f ? -x.value : log);
}

// e times the polynomial in its sigmoid e / (1 + e) whose largest relative distance from log(1 + e) / e is the smallest
// of its degree: 2^-10.2 for bfloat16, and 2^-13.3 for float16, where the constant is 1.
FUSED_LOSSES_ROUNDED Rounded<S> add_log1p_of_unit(Rounded<S> e, Rounded<S> sigmoid, Rounded<S> y) {
  float p = sigmoid.value;
  if constexpr (std::is_same_v<S, BFloat16>) {
    p = multiply_add(p, -0.26982811f, -0.475989133f);
    p = multiply_add(p, sigmoid.value, 0.999172449f);
  } else {
    p = multiply_add(p, -0.174325973f, -0.133572474f);
    p = multiply_add(p, sigmoid.value, -0.503205121f);
    p = multiply_add(p, sigmoid.value, 1.0f);
  }
  return Rounded<S>(multiply_add(e.value, p, y.value));
}
FUSED_LOSSES_ROUNDED Rounded<S> log1p_of_unit(Rounded<S> e, Rounded<S> sigmoid) {
  return add_log1p_of_unit(e, sigmoid, Rounded<S>(-0.0f));
}

// A quarter of b has a reciprocal that is not subnormal, whatever b is.
FUSED_LOSSES_ROUNDED Rounded<S> divide(Rounded<S> a, Rounded<S> b) {
  return Rounded<S>(divide_by_normal(a.value * 0.25f, b.value * 0.25f));
}
FUSED_LOSSES_ROUNDED Rounded<S> divide_by_normal(Rounded<S> a, Rounded<S> b) {
  return Rounded<S>(divide_by_normal(a.value, b.value));
}
FUSED_LOSSES_ROUNDED Rounded<S> reciprocal_of_one_to_two(Rounded<S> x) { return divide_by_normal(Rounded<S>(1), x); }

#undef FUSED_LOSSES_ROUNDED

}  // namespace fused_losses

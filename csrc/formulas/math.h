// The functions that formulas are written in, for one float or double at a time. cpu/vec_math.h has the same functions
// for a register of them. It must be included before any formula: a vector type belongs to no namespace, so a template
// finds only those overloads for it that were declared before the template.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "../host_device.h"

#define FUSED_LOSSES_WORD \
  template <class T>      \
  FUSED_LOSSES_HOST_DEVICE inline

namespace fused_losses {

// The type of one lane of T: T itself here, the element of a vector in vec_math.h.
template <class T>
struct Lane {
  using type = T;
};

FUSED_LOSSES_WORD T splat(double value) { return static_cast<T>(value); }

FUSED_LOSSES_HOST_DEVICE inline float select(bool mask, float a, float b) { return mask ? a : b; }
FUSED_LOSSES_HOST_DEVICE inline double select(bool mask, double a, double b) { return mask ? a : b; }

FUSED_LOSSES_HOST_DEVICE inline float abs(float x) { return std::fabs(x); }
FUSED_LOSSES_HOST_DEVICE inline double abs(double x) { return std::fabs(x); }
FUSED_LOSSES_HOST_DEVICE inline float exp(float x) { return std::exp(x); }
FUSED_LOSSES_HOST_DEVICE inline double exp(double x) { return std::exp(x); }
FUSED_LOSSES_HOST_DEVICE inline float log(float x) { return std::log(x); }
FUSED_LOSSES_HOST_DEVICE inline float log_of_normal(float x) { return std::log(x); }
FUSED_LOSSES_HOST_DEVICE inline double log(double x) { return std::log(x); }
FUSED_LOSSES_HOST_DEVICE inline double log_of_normal(double x) { return std::log(x); }

FUSED_LOSSES_HOST_DEVICE inline float tanh(float x) { return std::tanh(x); }
FUSED_LOSSES_HOST_DEVICE inline double tanh(double x) { return std::tanh(x); }

// x times 1 or -1, the sign of `sign`, also of a zero.
FUSED_LOSSES_HOST_DEVICE inline float multiply_sign(float x, float sign) { return std::copysign(1.0f, sign) * x; }
FUSED_LOSSES_HOST_DEVICE inline double multiply_sign(double x, double sign) { return std::copysign(1.0, sign) * x; }

FUSED_LOSSES_HOST_DEVICE inline float multiply_add(float a, float b, float c) { return std::fma(a, b, c); }
FUSED_LOSSES_HOST_DEVICE inline double multiply_add(double a, double b, double c) { return std::fma(a, b, c); }

FUSED_LOSSES_HOST_DEVICE inline float pow(float x, double p) { return static_cast<float>(std::pow(x, p)); }
FUSED_LOSSES_HOST_DEVICE inline double pow(double x, double p) { return std::pow(x, p); }

// x^p for x from 0 to 1 and p >= 0; 0^0 is 1.
FUSED_LOSSES_HOST_DEVICE inline double pow_of_unit(double x, double p) { return std::pow(x, p); }

// a / b; and the same for b between 2^-126 and 2^126. A GPU multiplies by a reciprocal that is right to one unit in the
// last place, since a division is a function with branches there.
FUSED_LOSSES_WORD T divide(T a, T b) { return a / b; }
FUSED_LOSSES_WORD T divide_by_normal(T a, T b) { return a / b; }
#if defined(__CUDA_ARCH__)
__device__ inline float divide(float a, float b) {
  float reciprocal;
  asm("rcp.approx.f32 %0, %1;" : "=f"(reciprocal) : "f"(b));
  return a * reciprocal;
}
__device__ inline float divide_by_normal(float a, float b) {
  float reciprocal;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(b));
  return a * reciprocal;
}
#endif

// Whether a condition does not hold.
FUSED_LOSSES_HOST_DEVICE inline bool negation(bool mask) { return !mask; }

// Whether x is in [0, 1].
FUSED_LOSSES_WORD auto is_in_unit(T x) { return (splat<T>(1) - x) * x >= splat<T>(0); }
#if defined(__CUDA_ARCH__)
__device__ inline bool is_in_unit(float x) { return __saturatef(x) == x; }
#endif

// What is computed faster than the general functions: e^x for x < 88; log(x), log(1 - x) and log(1 + x), each for x
// from 0 to 1, where log(0) may be any number from -100 down; and 1 / x for x from 1 to 2.
FUSED_LOSSES_HOST_DEVICE inline float exp_below_88(float x) { return std::exp(x); }
FUSED_LOSSES_HOST_DEVICE inline double exp_below_88(double x) { return std::exp(x); }
FUSED_LOSSES_HOST_DEVICE inline double log_of_unit(double x) { return std::log(x); }
FUSED_LOSSES_HOST_DEVICE inline double log_of_complement(double x) { return std::log1p(-x); }
FUSED_LOSSES_HOST_DEVICE inline double log1p_of_unit(double x) { return std::log1p(x); }
FUSED_LOSSES_HOST_DEVICE inline float reciprocal_of_one_to_two(float x) { return divide_by_normal(1.0f, x); }
FUSED_LOSSES_HOST_DEVICE inline double reciprocal_of_one_to_two(double x) { return 1 / x; }

// For floats, without branches, to 2 units in the last place. Polynomials are those of their degree whose largest
// relative error is the smallest.

// A float's bits, as a number.
FUSED_LOSSES_HOST_DEVICE inline int32_t bits_of_float(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
FUSED_LOSSES_HOST_DEVICE inline float float_of_bits(int32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

// The bits of 2^e, less those of 1, for x = 2^e (1 + f) with f in [-1/3, 1/3).
FUSED_LOSSES_HOST_DEVICE inline int32_t exponent_bits(float x) {
  constexpr int32_t kTwoThirds = 0x3f2aaaab, kMantissa = 0x7fffff;
  return (bits_of_float(x) - kTwoThirds) & ~kMantissa;
}

// log(2^e (1 + f)), as f + f^2 p(f) + e log(2).
FUSED_LOSSES_HOST_DEVICE inline float log_of_parts(float exponent_bits, float f) {
  float p = multiply_add(f, 0.140263617f, -0.153885394f);
  p = multiply_add(p, f, 0.139958069f);
  p = multiply_add(p, f, -0.164159611f);
  p = multiply_add(p, f, 0.200111687f);
  p = multiply_add(p, f, -0.250078201f);
  p = multiply_add(p, f, 0.333331972f);
  p = multiply_add(p, f, -0.499999374f);
  constexpr float kLn2OfBits = 8.26295832e-8f;  // log(2) / 2^23
  return multiply_add(exponent_bits, kLn2OfBits, multiply_add(f * p, f, f));
}

// Of 0, this is -104.
FUSED_LOSSES_HOST_DEVICE inline float log_of_unit(float x) {
  const bool subnormal = x < std::numeric_limits<float>::min();
  x = subnormal ? std::fabs(x) * 8388608.0f : x;  // 2^23, and of -0 as well
  const int32_t exponent = exponent_bits(x);
  const float f = float_of_bits(bits_of_float(x) - exponent) - 1;
  const float scaled = static_cast<float>(exponent);
  return log_of_parts(subnormal ? scaled - 23 * 8388608.0f : scaled, f);
}

// f comes from x itself, so that nothing of it is rounded away.
FUSED_LOSSES_HOST_DEVICE inline float log_of_complement(float x) {
  constexpr int32_t kOne = 0x3f800000;  // the bits of 1
  const float rest = 1 - x;
  const int32_t exponent = exponent_bits(rest);
  const float scale = float_of_bits(kOne - exponent);  // 2^-e
  const float log = log_of_parts(static_cast<float>(exponent), multiply_add(-x, scale, scale - 1));
  return rest == 0 ? -std::numeric_limits<float>::infinity() : log;
}

// 2^n y for a whole n from -151 to 0, in two steps, so that a subnormal product is rounded once.
FUSED_LOSSES_HOST_DEVICE inline float scale_by_power_of_two(float y, float n) {
  constexpr int32_t kBias = 127, kMantissaBits = 23;
  const int32_t exponent = static_cast<int32_t>(n), half = exponent >> 1;
  return y * float_of_bits((half + kBias) << kMantissaBits) * float_of_bits((exponent - half + kBias) << kMantissaBits);
}

// As 2^(p k) (1 + f)^p for x = 2^k (1 + f): the logarithm of x, which may be large, is not rounded to a float. Of p,
// the leading 8 bits and the others are multiplied by k apart, both exactly.
FUSED_LOSSES_HOST_DEVICE inline float pow_of_unit(float x, float p) {
  constexpr float kLog2e = 1.44269504f, kLn2 = 0.693147181f;
  constexpr float kBitsOfOne = 1.1920929e-7f;  // 2^-23, which makes a power of its bits
  constexpr float kLeast = -151;               // 2^-151 is 0
  const bool subnormal = x < std::numeric_limits<float>::min();
  const float scaled = subnormal ? x * 8388608.0f : x;  // 2^23
  const int32_t bits = exponent_bits(scaled);
  const float f = float_of_bits(bits_of_float(scaled) - bits) - 1;
  const float k = multiply_add(static_cast<float>(bits), kBitsOfOne, subnormal ? -23.0f : 0.0f);
  const float leading = float_of_bits(bits_of_float(p) & ~0xffff);
  const float whole = leading * k;
  const float tail = multiply_add(p, log_of_parts(0.0f, f) * kLog2e, (p - leading) * k);
  const float sum = whole + tail, n = std::rint(sum < kLeast ? kLeast : sum);
  const float power = scale_by_power_of_two(std::exp(((whole - n) + tail) * kLn2), n);
  return x > 0 ? power : (p == 0 ? 1.0f : 0.0f);
}

FUSED_LOSSES_HOST_DEVICE inline float log1p_of_unit(float x) {
  float p = multiply_add(x, -0.00331847463f, 0.0202045944f);
  p = multiply_add(p, x, -0.0576644614f);
  p = multiply_add(p, x, 0.10680557f);
  p = multiply_add(p, x, -0.153553978f);
  p = multiply_add(p, x, 0.196954012f);
  p = multiply_add(p, x, -0.249585882f);
  p = multiply_add(p, x, 0.33330512f);
  p = multiply_add(p, x, -0.499999315f);
  return multiply_add(x * p, x, x);
}

}  // namespace fused_losses

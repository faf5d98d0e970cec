// A register of floats or doubles, and the functions of formulas/math.h for it. To be included before any formula.
//
// Written in the vector extensions that GCC and Clang share, so that one text serves SSE2, AVX2 and AVX-512 and
// whatever else the compiler knows. Intrinsics stand where the extensions have no expression. The functions of float
// are polynomials; as losses use them, they are right to 3 units in the last place, which test_vec_math.py measures.
// Those of double call libm lane by lane: exact, if slow, and float64 is not what one trains with for speed.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include <torch/headeronly/util/Half.h>

#include "../formulas/math.h"

namespace fused_losses {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vector = typename VectorOf<T>::type;
using FloatV = Vector<float>;
using DoubleV = Vector<double>;
typedef int32_t IntV __attribute__((vector_size(kVectorBytes)));
typedef uint32_t UIntV __attribute__((vector_size(kVectorBytes)));
typedef int64_t LongV __attribute__((vector_size(kVectorBytes)));

template <class T>
inline constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <>
struct Lane<FloatV> {
  using type = float;
};
template <>
struct Lane<DoubleV> {
  using type = double;
};

template <>
inline FloatV splat<FloatV>(double value) {
  return FloatV{} + static_cast<float>(value);
}
template <>
inline DoubleV splat<DoubleV>(double value) {
  return DoubleV{} + value;
}

template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

inline FloatV select(IntV mask, FloatV a, FloatV b) { return mask ? a : b; }
inline DoubleV select(LongV mask, DoubleV a, DoubleV b) { return mask ? a : b; }
inline FloatV abs(FloatV x) { return bit_cast<FloatV>(bit_cast<IntV>(x) & 0x7fffffff); }
inline DoubleV abs(DoubleV x) { return bit_cast<DoubleV>(bit_cast<LongV>(x) & 0x7fffffffffffffffLL); }

inline IntV negation(IntV mask) { return ~mask; }
inline LongV negation(LongV mask) { return ~mask; }
inline FloatV multiply_sign(FloatV x, FloatV sign) {
  return bit_cast<FloatV>(bit_cast<IntV>(x) ^ (bit_cast<IntV>(sign) & std::numeric_limits<int32_t>::min()));
}
inline DoubleV multiply_sign(DoubleV x, DoubleV sign) {
  return bit_cast<DoubleV>(bit_cast<LongV>(x) ^ (bit_cast<LongV>(sign) & std::numeric_limits<int64_t>::min()));
}

// a > b ? a : b, which is b where either is NaN. x86 has an instruction for it.
#if defined(__AVX512F__)
inline FloatV larger(FloatV a, FloatV b) { return (FloatV)_mm512_max_ps((__m512)a, (__m512)b); }
#elif defined(__AVX2__)
inline FloatV larger(FloatV a, FloatV b) { return (FloatV)_mm256_max_ps((__m256)a, (__m256)b); }
#else
inline FloatV larger(FloatV a, FloatV b) { return a > b ? a : b; }
#endif
inline DoubleV larger(DoubleV a, DoubleV b) { return a > b ? a : b; }

// a b + c, rounded once if the instruction set can do so, else twice: always the same way, unlike a product and a sum
// that a compiler may or may not contract.
#if defined(__AVX512F__)
inline FloatV multiply_add(FloatV a, FloatV b, FloatV c) {
  return (FloatV)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
inline DoubleV multiply_add(DoubleV a, DoubleV b, DoubleV c) {
  return (DoubleV)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
}
#elif defined(__FMA__)
inline FloatV multiply_add(FloatV a, FloatV b, FloatV c) {
  return (FloatV)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
inline DoubleV multiply_add(DoubleV a, DoubleV b, DoubleV c) {
  return (DoubleV)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
}
#else
inline FloatV multiply_add(FloatV a, FloatV b, FloatV c) { return a * b + c; }
inline DoubleV multiply_add(DoubleV a, DoubleV b, DoubleV c) { return a * b + c; }
#endif

// ---- float: polynomials ----------------------------------------------------------------------

// 2^n y for integral n in [-151, 129]. In two steps, so that neither factor leaves the range of float, and a subnormal
// product is rounded once.
inline FloatV scale_by_power_of_two(FloatV y, FloatV n) {
#if defined(__AVX512F__)
  return (FloatV)_mm512_scalef_ps((__m512)y, (__m512)n);
#else
  const IntV exponent = __builtin_convertvector(n, IntV);
  const IntV half = exponent >> 1;
  const FloatV first = bit_cast<FloatV>((half + 127) << 23);
  const FloatV second = bit_cast<FloatV>((exponent - half + 127) << 23);
  return y * first * second;
#endif
}

// e^x = 2^n e^r with |r| <= ln(2) / 2, for x < 88; for larger x, the result may be anything. ln 2 is split into two
// numbers so that n kLn2High is exact. Of all polynomials of its degree, that of e^r has the smallest maximum of the
// relative error: 3e-9, a twentieth of a unit in the last place.
inline FloatV exp_below_88(FloatV x) {
  constexpr float kLog2e = 1.44269504088896341f;
  constexpr float kLn2High = 0.693359375f;
  constexpr float kLn2Low = -2.12194440e-4f;
  // Adding 1.5 * 2^23 leaves no fraction bits: rounds to the nearest integer.
  constexpr float kShift = 12582912.0f;
  x = larger(splat<FloatV>(-104.0), x);  // the result is 0 below; NaN stays
  const FloatV n = (x * kLog2e + kShift) - kShift;
  const FloatV r = (x - n * kLn2High) - n * kLn2Low;
  FloatV p = r * 1.3814539415761828e-3f + 8.36874544620514e-3f;
  p = p * r + 4.166838899254799e-2f;
  p = p * r + 1.666652113199234e-1f;
  p = p * r + 4.999999403953552e-1f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return scale_by_power_of_two(p, n);
}

// e^x for any x. Infinity is selected, not left to overflow: that may not happen where a compiler contracts the last
// product with the operation on its result.
inline FloatV exp(FloatV x) {
  constexpr float kLargest = 88.7228394f;  // log(2^128)
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  return select(x >= kLargest, splat<FloatV>(kInfinity), exp_below_88(x));
}

// log(2^e (1 + f)) for 1 + f in [sqrt(1/2), sqrt(2)), as f - f^2 / 2 + f^3 p(f) + e ln 2. The largest error of the
// polynomial p is a tenth of a unit in the last place.
inline FloatV log_of_parts(FloatV e, FloatV f) {
  FloatV p = f * -7.636545598506927e-2f + 1.2764671444892883e-1f;
  p = p * f - 1.3160888850688934e-1f;
  p = p * f + 1.4201395213603973e-1f;
  p = p * f - 1.6623252630233765e-1f;
  p = p * f + 2.0001238584518433e-1f;
  p = p * f - 2.50008225440979e-1f;
  p = p * f + 3.333333134651184e-1f;
  const FloatV square = f * f;
  const FloatV tail = p * (f * square) + e * -2.12194440e-4f - 0.5f * square;
  return (f + tail) + e * 0.693359375f;
}

// log(1 + x) for x in [0, 1], where 1 + x need not be split: it is 1 + f or 2 (1 + f).
inline FloatV log1p_of_unit(FloatV x) {
  const IntV high = x > 0.41421356f;
  return log_of_parts(high ? splat<FloatV>(1.0) : FloatV{}, high ? (x - 1.0f) * 0.5f : x);
}

// 1 / x for x in [1, 2], to about one unit in the last place: an estimate of 14 bits and one step of Newton's method
// take half the time of a division.
inline FloatV reciprocal_of_one_to_two(FloatV x) {
#if defined(__AVX512F__)
  const FloatV estimate = (FloatV)_mm512_rcp14_ps((__m512)x);
  return estimate * (1.0f - x * estimate) + estimate;
#else
  return 1.0f / x;
#endif
}

// x = 2^e (1 + f) for normal and subnormal x > 0.
inline void split(FloatV x, FloatV& e, FloatV& f) {
#if defined(__AVX512F__)
  // The exponent of x sqrt(1/2), plus one, puts 1 + f between sqrt(1/2) and sqrt(2).
  const __m512 v = (__m512)x;
  e = (FloatV)_mm512_getexp_ps(_mm512_mul_ps(v, _mm512_set1_ps(0.70710678118654752f))) + 1.0f;
  f = (FloatV)_mm512_scalef_ps(v, (__m512)(-e)) - 1.0f;
#else
  constexpr float kSmallestNormal = 1.17549435e-38f;
  const IntV tiny = x < kSmallestNormal;
  x = tiny ? x * 8388608.0f : x;  // 2^23
  const IntV bits = bit_cast<IntV>(x);
  // Subtracting the bits of sqrt(1/2) rounds the exponent to the power of two that is nearest in ratio.
  const IntV exponent = (bits - 0x3f3504f3) >> 23;
  f = bit_cast<FloatV>(bits - (exponent << 23)) - 1.0f;
  e = __builtin_convertvector(exponent, FloatV) - (tiny ? splat<FloatV>(23.0) : FloatV{});
#endif
}

// log where the polynomial does not hold: at 0, below, at infinity and at NaN. `inside` is the log elsewhere.
inline FloatV log_edges(FloatV x, FloatV inside) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  inside = x == 0.0f ? splat<FloatV>(-kInfinity) : inside;
  const IntV outside = ~((x >= 0.0f) & (x < kInfinity));
  // infinity stays infinity; below 0 and NaN become NaN.
  return outside ? (x > 0.0f ? x : splat<FloatV>(std::numeric_limits<float>::quiet_NaN())) : inside;
}

inline FloatV log(FloatV x) {
  FloatV e, f;
  split(x, e, f);
  return log_edges(x, log_of_parts(e, f));
}

inline FloatV log_of_normal(FloatV x) { return log(x); }
inline FloatV log_of_unit(FloatV x) { return log(x); }

// Near 0, the polynomial gets -x itself as f, whose low bits 1 - x would round away.
inline FloatV log_of_complement(FloatV x) {
  const FloatV u = 1.0f - x;
  FloatV e, f;
  split(u, e, f);
  const IntV near = (x < 0.25f) & (x > -0.375f);
  e = near ? FloatV{} : e;
  f = near ? -x : f;
  return log_edges(u, log_of_parts(e, f));
}

// By exponentials; for |x| below 0.625, where these would cancel, by the polynomial with the smallest maximum of the
// error.
inline FloatV tanh(FloatV x) {
  constexpr float kOne = 10.0f;  // from about 9 on, tanh is 1
  const FloatV size = abs(x);
  const FloatV exponential = exp_below_88(2.0f * (size > kOne ? splat<FloatV>(kOne) : size));
  const FloatV large = 1.0f - 2.0f / (exponential + 1.0f);
  const FloatV square = x * x;
  FloatV p = square * -5.70498872745e-3f + 2.06390887954e-2f;
  p = p * square - 5.37397155531e-2f;
  p = p * square + 1.33314422036e-1f;
  p = p * square - 3.33332819422e-1f;
  const FloatV near = p * (square * x) + x;
  return size < 0.625f ? near : (x < 0.0f ? -large : large);
}

// ---- double: libm, lane by lane --------------------------------------------------------------

template <double (*function)(double)>
inline DoubleV each_lane(DoubleV x) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = function(x[i]);
  return x;
}
inline DoubleV exp(DoubleV x) { return each_lane<std::exp>(x); }
inline DoubleV exp_below_88(DoubleV x) { return each_lane<std::exp>(x); }
inline DoubleV log(DoubleV x) { return each_lane<std::log>(x); }
inline DoubleV tanh(DoubleV x) { return each_lane<std::tanh>(x); }
inline DoubleV log_of_normal(DoubleV x) { return log(x); }
inline DoubleV log_of_unit(DoubleV x) { return log(x); }
inline DoubleV log1p_of_unit(DoubleV x) { return each_lane<std::log1p>(x); }
inline DoubleV log_of_complement(DoubleV x) { return each_lane<std::log1p>(-x); }
inline DoubleV reciprocal_of_one_to_two(DoubleV x) { return 1.0 / x; }

// ---- powers ----------------------------------------------------------------------------------

// x^p for x >= 0: by multiplication if p is a small whole number, else by libm, lane by lane.
template <class V, class = typename Lane<V>::type, class = decltype(V{}[0])>
inline V pow(V x, double p) {
  using T = typename Lane<V>::type;
  constexpr int kProducts = 8;  // cheaper than libm, and as exact
  if (p >= 1 && p <= kProducts && p == static_cast<int>(p)) {
    V power = x;
    for (int i = 1; i < static_cast<int>(p); ++i) power *= x;
    return power;
  }
  for (int i = 0; i < kLanes<T>; ++i) x[i] = static_cast<T>(std::pow(static_cast<double>(x[i]), p));
  return x;
}

// x^p for each lane, see formulas/math.h.
inline FloatV pow_of_unit(FloatV x, FloatV p) {
  constexpr float kLog2e = 1.44269504f, kLn2 = 0.693147181f;
  constexpr float kLeast = -151;         // 2^-151 is 0
  constexpr float kShift = 12582912.0f;  // 1.5 * 2^23, see exp_below_88
  FloatV k, f;
  split(x, k, f);
  const FloatV leading = bit_cast<FloatV>(bit_cast<IntV>(p) & ~0xffff);
  const FloatV whole = leading * k;
  const FloatV tail = p * (log_of_parts(FloatV{}, f) * kLog2e) + (p - leading) * k;
  const FloatV n = (larger(whole + tail, splat<FloatV>(kLeast)) + kShift) - kShift;
  const FloatV power = scale_by_power_of_two(exp_below_88(((whole - n) + tail) * kLn2), n);
  return select(x > 0.0f, power, select(p == 0.0f, splat<FloatV>(1), FloatV{}));
}
inline DoubleV pow_of_unit(DoubleV x, DoubleV p) {
  for (int i = 0; i < kLanes<double>; ++i) x[i] = pow_of_unit(x[i], p[i]);
  return x;
}

// ---- across lanes ----------------------------------------------------------------------------

// The sum of all lanes, as a double, since it is added to sums over thousands of registers.
template <class V>
inline double sum_of_lanes(V v) {
  constexpr int lanes = kLanes<typename Lane<V>::type>;
  double total = 0;
  for (int i = 0; i < lanes; ++i) total += v[i];
  return total;
}
inline double sum_of_lanes(FloatV v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  double total = 0;
  for (int i = 0; i < kLanes<float>; ++i) total += v[i];
  return total;
#endif
}

template <class V>
inline typename Lane<V>::type max_of_lanes(V v) {
  auto largest = v[0];
  for (int i = 1; i < kLanes<typename Lane<V>::type>; ++i) largest = v[i] > largest ? v[i] : largest;
  return largest;
}
#if defined(__AVX512F__)
inline float max_of_lanes(FloatV v) { return _mm512_reduce_max_ps((__m512)v); }
#endif

}  // namespace fused_losses

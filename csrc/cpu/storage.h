// From memory into registers and back, for all storage types: float and double as they are, bfloat16 and half converted
// to float on the way in, and rounded to nearest even on the way back.
#pragma once

#include <type_traits>

#include "../dtypes.h"
#include "vec_math.h"

namespace fused_losses {

inline constexpr int kFloatLanes = kLanes<float>;
typedef uint16_t ShortV __attribute__((vector_size(kVectorBytes / 2)));

// ---- whole registers -------------------------------------------------------------------------

template <class T>
inline Vector<T> load(const T* from) {
  Vector<T> v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}
template <class T>
inline void store(T* to, Vector<T> v) {
  std::memcpy(to, &v, sizeof(v));
}

inline FloatV load(const BFloat16* from) {
  ShortV bits;
  std::memcpy(&bits, from, sizeof(bits));
  return bit_cast<FloatV>(__builtin_convertvector(bits, UIntV) << 16);
}
inline void store(BFloat16* to, FloatV v) {
  const UIntV bits = bit_cast<UIntV>(v);
  const UIntV rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const UIntV safe = v == v ? rounded : UIntV{} + 0x7fc0;  // rounding must not turn NaN into infinity
  const ShortV narrow = __builtin_convertvector(safe, ShortV);
  std::memcpy(to, &narrow, sizeof(narrow));
}

inline FloatV load(const Half* from) {
#if defined(__AVX512F__)
  return (FloatV)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__F16C__)
  return (FloatV)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
  FloatV v;
  for (int i = 0; i < kFloatLanes; ++i) v[i] = static_cast<float>(from[i]);
  return v;
#endif
}
inline void store(Half* to, FloatV v) {
#if defined(__AVX512F__)
  const __m256i narrow = _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), narrow);
#elif defined(__F16C__)
  const __m128i narrow = _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), narrow);
#else
  for (int i = 0; i < kFloatLanes; ++i) to[i] = Half(v[i]);
#endif
}

// ---- past the caches -------------------------------------------------------------------------

// A store to memory that is not in the caches reads it first, only to overwrite it; a streaming store does not. Of the
// traffic of reading one tensor and writing another, this saves a third. What is streamed is not in the caches
// afterwards, so this is for results that they would not hold anyway: 16 MiB, eight second-level caches, or more. At
// this size, the next operation was measured not to pay for it (DESIGN.md, Streaming).
inline constexpr int64_t kStreamedBytes = int64_t{16} << 20;

// Whether a result of so many bytes is streamed. One that overwrites an operand is not: it is in the caches already.
inline bool is_streamed(const void* result, int64_t bytes, const void* operand) {
#if defined(__SSE2__)
  return bytes >= kStreamedBytes && result != operand;
#else
  return false;
#endif
}

template <class S>
inline bool is_aligned(const S* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % (kLanes<Compute<S>> * sizeof(S)) == 0;
}

// Stores a register past the caches. is_aligned(to) must hold.
template <class S>
inline void store_streaming(S* to, Vector<Compute<S>> v) {
#if defined(__SSE2__)
  constexpr size_t bytes = kLanes<Compute<S>> * sizeof(S);
  alignas(bytes) S elements[kLanes<Compute<S>>];
  store(elements, v);  // into a register, once compiled
#if defined(__AVX512F__)
  if constexpr (bytes == 64) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), *reinterpret_cast<const __m512i*>(elements));
    return;
  }
#endif
#if defined(__AVX2__)
  if constexpr (bytes == 32) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to), *reinterpret_cast<const __m256i*>(elements));
    return;
  }
#endif
  if constexpr (bytes == 16) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(to), *reinterpret_cast<const __m128i*>(elements));
    return;
  }
#endif
  store(to, v);
}

// Must follow the last streaming store of a thread before other threads may read what it has stored.
inline void finish_streaming() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// ---- the first `count` lanes of a register -----------------------------------------------------

template <class S>
inline Vector<Compute<S>> load_partial(const S* from, int count, double fill) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<S, float>) {
    const __mmask16 mask = static_cast<__mmask16>((1u << count) - 1);
    return (FloatV)_mm512_mask_loadu_ps((__m512)splat<FloatV>(fill), mask, from);
  }
#endif
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  if constexpr (sizeof(S) == sizeof(uint16_t)) {
    S padded[kFloatLanes];
    const S filler = static_cast<S>(static_cast<float>(fill));
    uint16_t bits;
    std::memcpy(&bits, &filler, sizeof(bits));
    const __m256i some = _mm256_mask_loadu_epi16(_mm256_set1_epi16(static_cast<short>(bits)),
                                                 static_cast<__mmask16>((1u << count) - 1), from);
    std::memcpy(padded, &some, sizeof(padded));
    return load(padded);
  }
#endif
  S padded[kLanes<Compute<S>>];
  for (S& element : padded) element = static_cast<S>(static_cast<Compute<S>>(fill));
  std::memcpy(padded, from, count * sizeof(S));
  return load(padded);
}
template <class S>
inline void store_partial(S* to, Vector<Compute<S>> v, int count) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<S, float>) {
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), (__m512)v);
    return;
  }
#endif
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  if constexpr (sizeof(S) == sizeof(uint16_t)) {
    S whole[kFloatLanes];
    store(whole, v);
    __m256i some;
    std::memcpy(&some, whole, sizeof(some));
    _mm256_mask_storeu_epi16(to, static_cast<__mmask16>((1u << count) - 1), some);
    return;
  }
#endif
  S padded[kLanes<Compute<S>>];
  store(padded, v);
  std::memcpy(to, padded, count * sizeof(S));
}

// 0, 1, 2, ...: the number of each lane.
template <class V>
inline V lane_numbers() {
  using T = typename Lane<V>::type;
  V numbers;
  for (int i = 0; i < kLanes<T>; ++i) numbers[i] = static_cast<T>(i);
  return numbers;
}

// A mask of the first `count` lanes.
template <class V>
inline auto first_lanes(int count) {
  return lane_numbers<V>() < static_cast<typename Lane<V>::type>(count);
}

// v with `fill` in the lanes from `count` on.
template <class V>
inline V keep_lanes(V v, int count, double fill) {
  return select(first_lanes<V>(count), v, splat<V>(fill));
}

// ---- arrays ------------------------------------------------------------------------------------

// Calls body(offset, count) for each register of n elements. `count` is a std::integral_constant for a whole register,
// and an int for the rest at the end, so that body is compiled for each.
template <class T, class Body>
inline void for_each_register(int64_t n, Body&& body) {
  constexpr int lanes = kLanes<T>;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) body(i, std::integral_constant<int, lanes>{});
  if (i < n) body(i, static_cast<int>(n - i));
}

// Loads and stores for either kind of that count: a whole register at once, or its first lanes; a load fills the
// others.
template <class S, class Count>
inline Vector<Compute<S>> load(const S* from, Count count, double fill) {
  if constexpr (std::is_same_v<Count, int>) {
    return load_partial(from, count, fill);
  } else {
    return load(from);
  }
}
template <class S, class Count>
inline void store(S* to, Vector<Compute<S>> v, Count count) {
  if constexpr (std::is_same_v<Count, int>) {
    store_partial(to, v, count);
  } else {
    store(to, v);
  }
}
template <class S, class Count>
inline void store(S* to, Vector<Compute<S>> v, Count count, bool streamed) {
  if constexpr (!std::is_same_v<Count, int>) {
    if (streamed) {
      store_streaming(to, v);
      return;
    }
  }
  store(to, v, count);
}

// Converts n elements between any two storage types, through the compute type of either.
template <class To, class From>
inline void convert(To* to, const From* from, int64_t n) {
  if constexpr (std::is_same_v<Compute<To>, Compute<From>>) {
    for_each_register<Compute<From>>(n, [&](int64_t i, auto count) { store(to + i, load(from + i, count, 0), count); });
  } else {
    for (int64_t i = 0; i < n; ++i) to[i] = static_cast<To>(static_cast<Compute<To>>(from[i]));
  }
}

}  // namespace fused_losses

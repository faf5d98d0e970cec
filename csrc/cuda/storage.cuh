// Elements in memory: one by one, of any dtype and stride, or in packs of 128 bits.
#pragma once

#include <cstdint>
#include <cstring>

#include "../views.h"
#include "launch.h"

#if !defined(FUSED_LOSSES_CUDA_ON_CPU)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace fused_losses {

// Calls body(0) to body(count - 1) in as many copies of its code: an array stays in registers only if all indices into
// it are constants.
template <int count, class Body>
__device__ inline void unrolled(const Body& body) {
#pragma unroll
  for (int i = 0; i < count; ++i) body(i);
}

// Element i of an array, or `absent` where there is no array.
template <class T>
__device__ inline T load_or(const void* data, ScalarType dtype, int64_t i, T absent) {
  return data ? load_as<T>(data, dtype, i) : absent;
}

// How far element i of an iteration lies from the beginning of an operand.
__device__ inline int64_t offset_of(const Operand& operand, const Iteration& iteration, int64_t i) {
  return operand.contiguous ? i : offset_of(i, iteration.dims, iteration.sizes, operand.strides);
}

template <class T>
__device__ inline T load_element(const Operand& operand, const Iteration& iteration, int64_t i, T absent) {
  if (!operand.data) return absent;
  return load_as<T>(operand.data, operand.dtype, offset_of(operand, iteration, i));
}

// The widest access to memory that every GPU has, 128 bits.
inline constexpr int kPackBytes = 16;

template <class S>
inline constexpr int kPack = kPackBytes / sizeof(S);

// The elements of a pack, for arithmetic.
template <class S>
struct Elements {
  S at[kPack<S>];
};

// A pack as words, so that one that is kept takes four registers, whatever the type of its elements.
template <class S>
struct alignas(kPackBytes) Pack {
  static constexpr int kWords = kPackBytes / sizeof(unsigned);
  unsigned words[kWords];

  Pack() = default;
  __device__ explicit Pack(const Elements<S>& elements) { std::memcpy(words, elements.at, kPackBytes); }

  __device__ Elements<S> elements() const {
    Elements<S> result;
    std::memcpy(result.at, words, kPackBytes);
    return result;
  }

  // Makes the compiler forget what it knows of the contents, else it would keep the converted elements, too.
  __device__ void forget() {
#if !defined(FUSED_LOSSES_CUDA_ON_CPU)
    asm volatile("" : "+r"(words[0]), "+r"(words[1]), "+r"(words[2]), "+r"(words[3]));
#endif
  }
};

template <class S>
__device__ inline Pack<S> load_pack(const void* data, int64_t pack) {
  const auto* from = static_cast<const Pack<S>*>(data) + pack;
#if defined(FUSED_LOSSES_CUDA_ON_CPU)
  cuda_on_cpu::check_aligned(from, kPackBytes);
  return *from;
#else
  const uint4 words = *reinterpret_cast<const uint4*>(from);  // else the compiler may load a pack word by word
  Pack<S> result;
  std::memcpy(result.words, &words, kPackBytes);
  return result;
#endif
}

template <class S>
__device__ inline void store_pack(void* data, int64_t pack, const Pack<S>& value) {
  auto* to = static_cast<Pack<S>*>(data) + pack;
#if defined(FUSED_LOSSES_CUDA_ON_CPU)
  cuda_on_cpu::check_aligned(to, kPackBytes);
#endif
  *to = value;
}

// Begins to copy a pack into shared memory, which takes no register; wait_for_copies() waits until all copies that this
// thread has begun are there.
__device__ inline void copy_pack(void* to, const void* from) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  const auto address = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address), "l"(from) : "memory");
#else
  store_pack(to, 0, load_pack<unsigned>(from, 0));
#endif
}
__device__ inline void wait_for_copies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

FUSED_LOSSES_HOST_DEVICE inline bool is_aligned(const void* data) {
  return reinterpret_cast<uintptr_t>(data) % kPackBytes == 0;
}

// The four words of a pack.
__device__ inline void load_words(unsigned* words, const void* from) {
  const auto pack = load_pack<unsigned>(from, 0);
  unrolled<4>([&](int w) { words[w] = pack.words[w]; });
}
__device__ inline void store_words(void* to, const unsigned* words) {
  Pack<unsigned> pack;
  unrolled<4>([&](int w) { pack.words[w] = words[w]; });
  store_pack(to, 0, pack);
}

// The larger number, in one instruction; NaN is passed over.
__device__ inline float larger_of(float a, float b) { return fmaxf(a, b); }
__device__ inline double larger_of(double a, double b) { return fmax(a, b); }

// The sum of a power of two of numbers, by additions that need not wait for each other.
template <int count, class T>
__device__ inline T sum_in_pairs(const T* numbers) {
  if constexpr (count == 1) {
    return numbers[0];
  } else {
    return sum_in_pairs<count / 2>(numbers) + sum_in_pairs<count / 2>(numbers + count / 2);
  }
}

template <class To, class From>
__device__ inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}
__device__ inline float float_of(unsigned word) { return bits_as<float>(word); }
__device__ inline unsigned word_of(float value) { return bits_as<unsigned>(value); }

// The two elements of 16 bits in a word, the first one in its low half.
struct TwoFloats {
  float first, second;
};

template <class S>
__device__ inline TwoFloats widened(unsigned word) {
  if constexpr (std::is_same_v<S, BFloat16>) {  // the upper half of a float
    return {float_of(word << 16), float_of(word & 0xffff0000u)};
  } else {
#if defined(FUSED_LOSSES_CUDA_ON_CPU)
    const auto low = static_cast<uint16_t>(word), high = static_cast<uint16_t>(word >> 16);
    return {bits_as<Half>(low), bits_as<Half>(high)};
#else
    const float2 both = __half22float2(bits_as<__half2>(word));
    return {both.x, both.y};
#endif
  }
}

template <class S>
__device__ inline unsigned narrowed(float first, float second) {
#if defined(FUSED_LOSSES_CUDA_ON_CPU)
  return bits_as<uint16_t>(S(first)) | static_cast<unsigned>(bits_as<uint16_t>(S(second))) << 16;
#else
  if constexpr (std::is_same_v<S, BFloat16>) {
    return bits_as<unsigned>(__floats2bfloat162_rn(first, second));
  } else {
    return bits_as<unsigned>(__floats2half2_rn(first, second));
  }
#endif
}

// The elements of a pack, in the type of arithmetic, and back.
template <class S, class T>
__device__ inline void unpack(const Pack<S>& pack, T* elements) {
  if constexpr (sizeof(S) == 2) {
    unrolled<kPack<S> / 2>([&](int w) {
      const TwoFloats pair = widened<S>(pack.words[w]);
      elements[2 * w] = static_cast<T>(pair.first);
      elements[2 * w + 1] = static_cast<T>(pair.second);
    });
  } else {
    const Elements<S> some = pack.elements();
    unrolled<kPack<S>>([&](int i) { elements[i] = static_cast<T>(some.at[i]); });
  }
}

template <class S, class T>
__device__ inline Pack<S> packed(const T* elements) {
  Pack<S> pack;
  if constexpr (sizeof(S) == 2) {
    unrolled<kPack<S> / 2>([&](int w) {
      pack.words[w] = narrowed<S>(static_cast<float>(elements[2 * w]), static_cast<float>(elements[2 * w + 1]));
    });
  } else {
    Elements<S> some;
    unrolled<kPack<S>>([&](int i) { some.at[i] = static_cast<S>(elements[i]); });
    pack = Pack<S>(some);
  }
  return pack;
}

}  // namespace fused_losses

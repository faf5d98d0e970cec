// Elements in memory: one by one, of any dtype and stride, or in packs of 128 bits.
#pragma once

#include <cstdint>
#include <cstring>

#include "../views.h"
#include "launch.h"

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
#endif
  return *from;
}

template <class S>
__device__ inline void store_pack(void* data, int64_t pack, const Pack<S>& value) {
  auto* to = static_cast<Pack<S>*>(data) + pack;
#if defined(FUSED_LOSSES_CUDA_ON_CPU)
  cuda_on_cpu::check_aligned(to, kPackBytes);
#endif
  *to = value;
}

inline bool is_aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % kPackBytes == 0; }

}  // namespace fused_losses

// Rows for kernels that read each of them once: rows of whole packs, and tiles of short rows in shared memory.
#pragma once

#include "lines.cuh"

namespace fused_losses {

// Access to rows of type S that begin where a pack does and end where one does: there are no elements beyond the ends.
template <class S>
struct Whole {
  using T = Compute<S>;
  using Held = Pack<S>;
  static constexpr int kElements = kPack<S>;

  template <class Index>
  __device__ static Held load(const Line& line, const Span<Index>&, Index p, T) {
    return load_pack<S>(static_cast<const S*>(line.data) + line.offset, p);
  }
  __device__ static void unpack(const Held& held, T* elements) { fused_losses::unpack(held, elements); }
  template <class Index>
  __device__ static void store(const Line& line, const Span<Index>&, Index p, const T* values) {
    store_pack(static_cast<S*>(line.data) + line.offset, p, packed<S>(values));
  }
};

template <class Access>
inline constexpr bool kIsWhole = false;
template <class S>
inline constexpr bool kIsWhole<Whole<S>> = true;

// Whether rows of so many elements, which begin at multiples of these strides, are Whole.
inline bool are_whole(const Alignment& alignment, ScalarType dtype, int64_t length, const int64_t* row_strides,
                      int dims) {
  const int64_t pack = kPackBytes / with_storage(dtype, [](auto s) { return sizeof(s); });
  return alignment.is_packed() && alignment.shift() == 0 && length % pack == 0 &&
         std::all_of(row_strides, row_strides + dims, [&](int64_t stride) { return stride % pack == 0; });
}

// The most packs that a row of so many elements can have, wherever it begins.
template <class Access>
FUSED_LOSSES_HOST_DEVICE int64_t most_packs(int64_t length) {
  constexpr int kLost = kIsWhole<Access> ? 0 : 2 * (Access::kElements - 1);
  return (length + kLost) / Access::kElements;
}

// How many blocks of `threads` share `tiles` of rows, if a multiprocessor holds `resident` blocks of kThreads: as many
// as 128 multiprocessors hold, whatever the device, so that the loss is the same bits everywhere. An H100 has 132.
inline int row_blocks(int64_t tiles, int resident, int threads = kThreads) {
  int64_t processors = 128;
#if defined(FUSED_LOSSES_CUDA_ON_CPU)
  processors = std::min<int64_t>(processors, cuda_on_cpu::processors);  // few, so that blocks take several tiles each
#endif
  return static_cast<int>(std::clamp<int64_t>(tiles, 1, processors * resident * kThreads / threads));
}

// Copies `count` elements by all threads of a block of kThreads, in packs. Both addresses are aligned. A thread has
// four packs on their way at a time.
template <class S>
__device__ inline void copy_in_packs(S* to, const S* from, int count) {
  const int packs = count / kPack<S>;
#pragma unroll 4
  for (int p = threadIdx.x; p < packs; p += kThreads) store_pack(to, p, load_pack<S>(from, p));
  for (int i = packs * kPack<S> + threadIdx.x; i < count; i += kThreads) to[i] = from[i];
}

}  // namespace fused_losses

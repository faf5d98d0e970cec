// Threads that share a row: some neighbours within a warp, or a whole block.
#pragma once

#include "reduce.cuh"

namespace fused_losses {

// How many threads a row gets: a power of two, such that each has about `each` packs of it.
inline int lanes_for(int64_t packs, int each, int most) {
  int lanes = 1;
  while (lanes < most && static_cast<int64_t>(lanes) * each < packs) lanes *= 2;
  // Between a warp and a block of the least size, there is nothing.
  return lanes > kWarp && lanes < kThreads ? kThreads : lanes;
}

class Group {
 public:
  // Either a part of a warp, which is a power of two, or the block.
  __device__ explicit Group(int lanes) : lanes_(lanes) {}

  __device__ int lanes() const { return lanes_; }
  __device__ int lane() const { return static_cast<int>(threadIdx.x) & (lanes_ - 1); }
  __device__ bool leads() const { return lane() == 0; }
  __device__ int in_block() const { return static_cast<int>(blockDim.x) / lanes_; }
  // The row of this group when the block begins with row `first`.
  __device__ int64_t row(int64_t first) const { return first + threadIdx.x / lanes_; }

  // Waits until all have come here, and sees what they have written.
  __device__ void sync() const {
    if (lanes_ > kWarp) {
      __syncthreads();
    } else {
      __syncwarp();
    }
  }

  // What all hold, merged in an order that depends on nothing: merge(other's, own) for `count` numbers of type T.
  // Called by all threads of the block at once; all of the group get the result.
  template <int count, class T, class Merge>
  __device__ void merge_all(T* numbers, const Merge& merge) const {
    merge_lanes<count>(numbers, lanes_ < kWarp ? lanes_ : kWarp, merge);
    if (lanes_ <= kWarp) return;
    FUSED_LOSSES_SHARED(T, warp_numbers, kWarp * count);
    const int warps = lanes_ / kWarp, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    __syncthreads();  // nobody reads the last ones any more
    if (lane == 0) {
      unrolled<count>([&](int k) { warp_numbers[warp * count + k] = numbers[k]; });
    }
    __syncthreads();
    unrolled<count>([&](int k) { numbers[k] = warp_numbers[(lane & (warps - 1)) * count + k]; });
    merge_lanes<count>(numbers, warps, merge);
  }

  template <class T>
  __device__ T sum(T value) const {
    merge_all<1>(&value, [](const T* other, T* own) { *own += *other; });
    return value;
  }

 private:
  template <int count, class T, class Merge>
  __device__ static void merge_lanes(T* numbers, int lanes, const Merge& merge) {
    for (int distance = lanes / 2; distance > 0; distance /= 2) {
      T other[count];
      unrolled<count>([&](int k) { other[k] = __shfl_xor_sync(0xffffffffu, numbers[k], distance); });
      merge(other, numbers);
    }
  }

  const int lanes_;
};

}  // namespace fused_losses

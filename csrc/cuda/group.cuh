// The threads that share a row: some neighbours in a warp, or a whole block.
#pragma once

#include "reduce.cuh"

namespace fused_losses {

// How many threads share a row: the least power of two by which each has `each` packs or fewer, but at most `most`.
inline int lanes_for(int64_t packs, int each, int most) {
  int lanes = 1;
  while (lanes < most && static_cast<int64_t>(lanes) * each < packs) lanes *= 2;
  // A group is a part of a warp or a block, so there is none between a warp and the smallest block.
  return lanes > kWarp && lanes < kThreads ? kThreads : lanes;
}

class Group {
 public:
  // `lanes` is a power of two up to a warp, or the threads of the block.
  __device__ explicit Group(int lanes) : lanes_(lanes) {}

  __device__ int lanes() const { return lanes_; }
  __device__ int lane() const { return static_cast<int>(threadIdx.x) & (lanes_ - 1); }
  __device__ bool leads() const { return lane() == 0; }
  __device__ int in_block() const { return static_cast<int>(blockDim.x) / lanes_; }
  // The row of this group, if the block's first group has row `first`.
  __device__ int64_t row(int64_t first) const { return first + threadIdx.x / lanes_; }

  // Waits until all threads of the group have come here; then each sees what the others have written.
  __device__ void sync() const {
    if (lanes_ > kWarp) {
      __syncthreads();
    } else {
      __syncwarp();
    }
  }

  // Merges what the threads of the group hold, `count` numbers of type T each, by merge(others, own), always in the
  // same order. All threads get the result. To be called by all threads of the block at once.
  template <int count, class T, class Merge>
  __device__ void merge_all(T* numbers, const Merge& merge) const {
    merge_lanes<count>(numbers, lanes_ < kWarp ? lanes_ : kWarp, merge);
    if (lanes_ <= kWarp) return;
    FUSED_LOSSES_SHARED(T, warp_numbers, kWarp * count);
    const int warps = lanes_ / kWarp, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    __syncthreads();  // no thread reads the numbers of an earlier call any more
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

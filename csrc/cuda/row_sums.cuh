// Sums and the largest of what the threads of a row hold: all of them get the results, which do not depend on which
// thread is first.
#pragma once

#include "group.cuh"

namespace fused_losses {

// `count` numbers of each thread become their sums over the group, or the largest of each. To be called by all threads
// of a block at once. Between two calls for the same kind of result, all must have met elsewhere.
template <bool kInBlock, bool kLargest, int count, class T>
__device__ inline void combine(const Group& group, T* numbers) {
  constexpr T kNeutral = kLargest ? static_cast<T>(-INFINITY) : T(0);
  const auto step = [&](int distance, bool combines) {
    unrolled<count>([&](int k) {
      const T other = __shfl_xor_sync(0xffffffffu, numbers[k], distance);
      if (combines) numbers[k] = kLargest ? larger_of(numbers[k], other) : numbers[k] + other;
    });
  };
  // Every step is taken, whatever the lanes, so that the compiler knows how many there are.
  unrolled<5>([&](int s) { step(kWarp / 2 >> s, kInBlock || kWarp / 2 >> s < group.lanes()); });
  if constexpr (kInBlock) {
    FUSED_LOSSES_SHARED(T, warp_numbers, kWarp * count);
    const int warps = group.lanes() / kWarp, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    if (lane == 0) unrolled<count>([&](int k) { warp_numbers[warp * count + k] = numbers[k]; });
    __syncthreads();
    unrolled<count>([&](int k) { numbers[k] = lane < warps ? warp_numbers[lane * count + k] : kNeutral; });
    unrolled<5>([&](int s) { step(kWarp / 2 >> s, true); });
  }
}

}  // namespace fused_losses

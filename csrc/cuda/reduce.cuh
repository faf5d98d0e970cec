// The reduced loss: the upstream gradient of it, its divisor, and the sum of what blocks have found, which the launch
// that finds it adds up, too, in a fixed order.
#pragma once

#include "storage.cuh"

namespace fused_losses {

__device__ inline double upstream_of(const Scaling& scaling) {
  return scaling.upstream ? load_as<double>(scaling.upstream, scaling.upstream_dtype, 0) : 1;
}

__device__ inline double divisor_of(const Scaling& scaling) {
  return scaling.divisor_on_device ? *scaling.divisor_on_device : scaling.divisor;
}

template <class T>
__device__ inline T sum_of_warp(T value) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  }
  return value;
}

// The sum over a block of whole warps, always in the same order. The threads of the first warp get it, others 0.
template <class T>
__device__ inline T sum_of_block(T value) {
  FUSED_LOSSES_SHARED(T, warp_sums, kWarp);
  value = sum_of_warp(value);
  __syncthreads();  // no thread reads the sums of an earlier call any more
  if (threadIdx.x % kWarp == 0) warp_sums[threadIdx.x / kWarp] = value;
  __syncthreads();
  if (threadIdx.x >= kWarp) return T(0);
  return sum_of_warp(threadIdx.x < blockDim.x / kWarp ? warp_sums[threadIdx.x] : T(0));
}

// Writes the reduced loss: the sum over all threads of all blocks, over the divisor. Called by all threads at their
// end. Each block leaves its sum, and the last one to arrive adds up what all have left, always in the same order:
// which block that is makes no difference.
__device__ inline void finish(double sum, const Reduced& reduced, double divisor) {
  sum = sum_of_block(sum);
  FUSED_LOSSES_SHARED(int, is_last, 1);
  if (threadIdx.x == 0) {
    reduced.partials[blockIdx.x] = sum;
    __threadfence();
    *is_last = atomicAdd(reduced.arrived, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!*is_last) return;
  __threadfence();
  double total = 0;
  for (unsigned block = threadIdx.x; block < gridDim.x; block += blockDim.x) total += __ldcg(reduced.partials + block);
  total = sum_of_block(total);
  if (threadIdx.x == 0) {
    store_as(reduced.loss, reduced.dtype, 0, total / divisor);
    *reduced.arrived = 0;
  }
}

}  // namespace fused_losses

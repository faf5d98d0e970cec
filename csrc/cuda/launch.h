// The one place that launches kernels, and what kernels need that CUDA has no portable expression for. Under
// FUSED_LOSSES_CUDA_ON_CPU, the same sources are plain C++, which tests/backends/cuda_on_cpu runs.
#pragma once

#include "engine.h"

#if defined(FUSED_LOSSES_CUDA_ON_CPU)
#include "cuda_on_cpu.h"
#define FUSED_LOSSES_SHARED(T, name, count) T* const name = cuda_on_cpu::shared<T>(count, __FILE__, __LINE__)
#define FUSED_LOSSES_DYNAMIC_SHARED(name) char* const name = cuda_on_cpu::dynamic_shared()
#define FUSED_LOSSES_NOINLINE [[gnu::noinline]]
#else
#include "errors.h"
#define FUSED_LOSSES_SHARED(T, name, count) __shared__ T name[count]
#define FUSED_LOSSES_DYNAMIC_SHARED(name) extern __shared__ __align__(16) char name[]
#define FUSED_LOSSES_NOINLINE __noinline__
extern "C" __device__ void __assertfail(const char*, const char*, unsigned, const char*, size_t);
#endif

namespace fused_losses {

template <class Arguments>
void launch(void (*kernel)(Arguments), const Queue& queue, int blocks, int threads, const Arguments& arguments,
            int64_t shared_bytes = 0) {
#if defined(FUSED_LOSSES_CUDA_ON_CPU)
  static_cast<void>(queue);
  cuda_on_cpu::launch(kernel, dim3(blocks), dim3(threads), shared_bytes, arguments);
#else
  const void* const function = reinterpret_cast<const void*>(kernel);
  constexpr int64_t kWithoutAsking = 48 << 10;  // the most that CUDA gives a kernel whose limit was not raised
  if (shared_bytes > kWithoutAsking) {
    // Raised to the most that there is, not to what this launch needs: the limit belongs to the kernel, and a lower one
    // could come between another thread's limit and its launch.
    check_cuda(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(queue.shared_bytes)));
  }
  void* list[] = {const_cast<Arguments*>(&arguments)};
  check_cuda(cudaLaunchKernel(function, dim3(blocks), dim3(threads), list, shared_bytes,
                              static_cast<cudaStream_t>(queue.stream)));
#endif
}

// The upper half of a product of 64 bits.
__device__ inline uint32_t high_product(uint32_t a, uint32_t b) {
#if defined(__CUDA_ARCH__)
  return __umulhi(a, b);
#else
  return static_cast<uint32_t>(uint64_t{a} * b >> 32);
#endif
}

// Ends all work on the device with a message, as torch's own assertions do.
__device__ inline void check(bool holds, const char* message) {
  if (holds) return;
#if defined(FUSED_LOSSES_CUDA_ON_CPU)
  cuda_on_cpu::fail(message);
#else
  __assertfail(message, "fused_losses", 0, "", 1);
#endif
}

}  // namespace fused_losses

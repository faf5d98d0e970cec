// What kernels use of CUDA, in plain C++: kernels run on the CPU, and the threads of a block as fibers, in an order
// that a seed decides (FUSED_LOSSES_CUDA_SEED). So a race shows as a result that changes with the seed, and
// AddressSanitizer finds accesses out of bounds.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>

#include "fibers.h"

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x_ = 1) : x(x_) {}
};

struct ulonglong2 {
  unsigned long long x, y;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_cpu {

inline Block block([](unsigned thread) { threadIdx.x = thread; });

inline long launches = 0;

// The device as the host's part sees it. By default, so few multiprocessors that blocks take several tiles each, and so
// little shared memory that some rows do not fit.
inline int processors = 2;
inline long shared_bytes = 48 << 10;

// Takes launches in the place of running them: the kernel, blocks, threads of a block, bytes of dynamic shared memory,
// and the kernel's first argument with its size.
using Hook = void (*)(const void*, unsigned, unsigned, size_t, const void*, size_t);
inline Hook hook = nullptr;

inline uint64_t next_seed() {
  static const char* const given = std::getenv("FUSED_LOSSES_CUDA_SEED");
  static uint64_t seed = given ? std::strtoull(given, nullptr, 10) : 0;
  return seed += 0x9e3779b97f4a7c15;
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 threads, size_t shared_bytes,
            const Arguments&... arguments) {
  ++launches;
  if (hook) {
    const void* const addresses[] = {&arguments...};
    const size_t sizes[] = {sizeof(arguments)...};
    return hook(reinterpret_cast<const void*>(kernel), grid.x, threads.x, shared_bytes, addresses[0], sizes[0]);
  }
  gridDim = grid;
  blockDim = threads;
  std::mt19937_64 random(next_seed());
  std::vector<unsigned> order(grid.x);
  for (unsigned i = 0; i < grid.x; ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), random);
  for (unsigned i : order) {
    blockIdx.x = i;
    block.run(threads.x, shared_bytes, [&] { kernel(arguments...); }, random());
  }
}

// A variable in shared memory. It is identified by where it is declared and by its size: one place in a template
// declares variables of several sizes.
template <class T>
T* shared(size_t count, const char* file, int line) {
  return static_cast<T*>(block.shared({file, line, count * sizeof(T)}));
}

inline char* dynamic_shared() { return static_cast<char*>(block.dynamic_shared()); }

[[noreturn]] inline void fail(const char* message) { throw std::runtime_error(message); }

inline void check_aligned(const void* address, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(address) % bytes) fail("a misaligned access");
}

template <class T>
uint64_t bits_of(T value) {
  uint64_t bits = 0;
  static_assert(sizeof(T) <= sizeof(bits));
  std::memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <class T>
T value_of(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace cuda_on_cpu

// How many kernels were launched, for tests that load the library.
extern "C" __attribute__((visibility("default"), used)) inline long cuda_on_cpu_launches() {
  return cuda_on_cpu::launches;
}

// For those who ask what would be launched on a device with so many multiprocessors, and so many bytes of shared memory
// for a block. From now on, nothing runs.
extern "C" __attribute__((visibility("default"), used)) inline void cuda_on_cpu_take_launches(cuda_on_cpu::Hook hook,
                                                                                              int processors,
                                                                                              long shared_bytes) {
  cuda_on_cpu::hook = hook;
  cuda_on_cpu::processors = processors;
  cuda_on_cpu::shared_bytes = shared_bytes;
}

inline void __syncthreads() { cuda_on_cpu::block.wait_for_block(); }
inline void __syncwarp() { cuda_on_cpu::block.exchange(0xffffffffu, 0); }
inline void __threadfence() { cuda_on_cpu::block.maybe_pause(); }

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int distance) {
  const unsigned other = threadIdx.x % cuda_on_cpu::kWarp ^ distance;
  return cuda_on_cpu::value_of<T>(cuda_on_cpu::block.exchange(mask, cuda_on_cpu::bits_of(value))[other]);
}

template <class T>
T __shfl_sync(unsigned mask, T value, int lane) {
  return cuda_on_cpu::value_of<T>(cuda_on_cpu::block.exchange(mask, cuda_on_cpu::bits_of(value))[lane]);
}

template <class T>
T atomicAdd(T* to, T value) {
  cuda_on_cpu::block.maybe_pause();
  const T before = *to;
  *to += value;
  return before;
}

template <class T>
T atomicOr(T* to, T value) {
  cuda_on_cpu::block.maybe_pause();
  const T before = *to;
  *to |= value;
  return before;
}

template <class T>
T __ldcg(const T* from) {
  return *from;
}

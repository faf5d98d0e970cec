// Kernels with planted faults, and some without. test_cuda_on_cpu.py asks whether the faults are found.
#include <cstdio>
#include <memory>

#include "cuda_on_cpu.h"

namespace {

constexpr int kThreads = 64;

using cuda_on_cpu::launch;
using cuda_on_cpu::shared;

// Each thread reads what its neighbour writes. Without a barrier in between, that may not have been written yet.
template <bool kWaits>
__global__ void pass_on(const float* from, float* to) {
  float* const passed = shared<float>(kThreads, __FILE__, __LINE__);
  passed[threadIdx.x] = from[threadIdx.x];
  if (kWaits) __syncthreads();
  to[threadIdx.x] = passed[(threadIdx.x + 1) % kThreads];
}

template <bool kWaits>
int race() {
  float from[kThreads], to[kThreads];
  for (int i = 0; i < kThreads; ++i) from[i] = static_cast<float>(i);
  launch(pass_on<kWaits>, dim3(1), dim3(kThreads), 0, static_cast<const float*>(from), static_cast<float*>(to));
  int wrong = 0;
  for (int i = 0; i < kThreads; ++i) wrong += to[i] != from[(i + 1) % kThreads];
  std::printf("%d wrong\n", wrong);
  return 0;
}

__global__ void write_beyond(float* to, int count) { to[threadIdx.x + 1] = static_cast<float>(count); }

int out_of_bounds() {
  const std::unique_ptr<float[]> memory(new float[kThreads]);
  launch(write_beyond, dim3(1), dim3(kThreads), 0, memory.get(), kThreads);
  return 0;
}

__global__ void write_beyond_shared(float* to) {
  float* const memory = shared<float>(kThreads, __FILE__, __LINE__);
  memory[threadIdx.x + 1] = 1;
  to[threadIdx.x] = memory[threadIdx.x];
}

int out_of_shared_bounds() {
  float to[kThreads];
  launch(write_beyond_shared, dim3(1), dim3(kThreads), 0, static_cast<float*>(to));
  return 0;
}

__global__ void load_misaligned(const float* from) { cuda_on_cpu::check_aligned(from + 1, 16); }

int misaligned() {
  alignas(16) const float from[8] = {};
  launch(load_misaligned, dim3(1), dim3(1), 0, static_cast<const float*>(from));
  return 0;
}

// Half of a warp waits for the block, the other half for the warp.
__global__ void diverge(int* to) {
  if (threadIdx.x % 2) {
    __syncthreads();
  } else {
    to[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1, 1);
  }
}

int deadlock() {
  int to[kThreads];
  launch(diverge, dim3(1), dim3(kThreads), 0, static_cast<int*>(to));
  return 0;
}

// Blocks leave their sums, and the last to arrive adds them up.
__global__ void add_up(const int* from, int* partials, unsigned* arrived, int* total) {
  int sum = from[blockIdx.x * kThreads + threadIdx.x];
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
  int* const warp_sums = shared<int>(2, __FILE__, __LINE__);
  int* const last = shared<int>(1, __FILE__, __LINE__);
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    partials[blockIdx.x] = warp_sums[0] + warp_sums[1];
    __threadfence();
    *last = atomicAdd(arrived, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (!*last || threadIdx.x) return;
  *total = 0;
  for (unsigned i = 0; i < gridDim.x; ++i) *total += partials[i];
}

int sum() {
  constexpr int kBlocks = 100;
  static int from[kBlocks * kThreads], partials[kBlocks];
  int total = 0, expected = 0;
  unsigned arrived = 0;
  for (int i = 0; i < kBlocks * kThreads; ++i) expected += from[i] = i % 1000;
  launch(add_up, dim3(kBlocks), dim3(kThreads), 0, static_cast<const int*>(from), static_cast<int*>(partials), &arrived,
         &total);
  std::printf("%d wrong\n", total != expected);
  return 0;
}

// Nothing runs, and whoever takes the launch sees all of it.
int taken() {
  static int blocks = 0, threads = 0;
  static const int* seen = nullptr;
  cuda_on_cpu_take_launches(
      [](const void* kernel, unsigned grid, unsigned block, size_t shared_bytes, const void* argument, size_t bytes) {
        if (kernel != reinterpret_cast<const void*>(diverge) || shared_bytes != 16 || bytes != sizeof(seen)) return;
        blocks = static_cast<int>(grid);
        threads = static_cast<int>(block);
        std::memcpy(&seen, argument, bytes);
      },
      132, 1 << 10);
  int to[kThreads];
  launch(diverge, dim3(3), dim3(kThreads), 16, static_cast<int*>(to));
  const bool told = cuda_on_cpu::processors == 132 && cuda_on_cpu::shared_bytes == 1 << 10;
  std::printf("%d wrong\n", !(blocks == 3 && threads == kThreads && seen == to && told));
  return 0;
}

}  // namespace

int main(int, char** arguments) {
  const std::map<std::string, int (*)()> cases{{"race", race<false>},
                                               {"no race", race<true>},
                                               {"bounds", out_of_bounds},
                                               {"shared bounds", out_of_shared_bounds},
                                               {"misaligned", misaligned},
                                               {"deadlock", deadlock},
                                               {"sum", sum},
                                               {"taken", taken}};
  try {
    return cases.at(arguments[1])();
  } catch (const std::exception& error) {
    std::printf("%s\n", error.what());
    return 1;
  }
}

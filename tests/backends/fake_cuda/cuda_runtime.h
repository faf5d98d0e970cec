// A stand-in for CUDA's runtime, for the host's code alone: it launches nothing, returns the errors that a test asks
// for, and remembers what it was called with.
#pragma once

#include <cstddef>
#include <cstring>
#include <vector>

#define __device__
#define __host__
#define __global__

struct dim3 {
  unsigned x;
  dim3(unsigned x_) : x(x_) {}
};

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorNoKernelImageForDevice = 209 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
using cudaStream_t = void*;

namespace fake_cuda {

// What calls return: of cudaFuncSetAttribute, cudaLaunchKernel, cudaMemsetAsync, and of those that ask for something.
inline cudaError_t limit, launch, memset, query;
inline bool capturing = false;
inline cudaError_t last = cudaSuccess;
inline std::vector<int> limits;  // the limits of shared memory that were set
inline int launches = 0, memsets = 0;

// As the runtime does, keeps an error until cudaGetLastError().
inline cudaError_t returned(cudaError_t error) {
  if (error != cudaSuccess) last = error;
  return error;
}

}  // namespace fake_cuda

inline cudaError_t cudaGetLastError() {
  const cudaError_t error = fake_cuda::last;
  fake_cuda::last = cudaSuccess;
  return error;
}
inline const char* cudaGetErrorString(cudaError_t) { return "an error of CUDA"; }
inline cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int value) {
  fake_cuda::limits.push_back(value);
  return fake_cuda::returned(fake_cuda::limit);
}
inline cudaError_t cudaLaunchKernel(const void*, dim3, dim3, void**, size_t, cudaStream_t) {
  ++fake_cuda::launches;
  return fake_cuda::returned(fake_cuda::launch);
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = 64 << 10;
  return fake_cuda::returned(fake_cuda::query);
}
inline cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = fake_cuda::capturing ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return fake_cuda::returned(fake_cuda::query);
}
inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t) {
  ++fake_cuda::memsets;
  if (fake_cuda::memset == cudaSuccess) std::memset(memory, value, bytes);
  return fake_cuda::returned(fake_cuda::memset);
}

// Errors of CUDA's runtime as exceptions.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace fused_losses {

inline void check_cuda(cudaError_t error) {
  if (error == cudaSuccess) return;
  // The runtime keeps an error until it is asked for. torch asks after its next operator, and would blame that.
  static_cast<void>(cudaGetLastError());
  if (error == cudaErrorNoKernelImageForDevice) {
    throw std::runtime_error(
        "fused_losses: the CUDA library was not built for this GPU: reinstall with TORCH_CUDA_ARCH_LIST, or set "
        "FUSED_LOSSES_BACKEND=triton");
  }
  throw std::runtime_error(std::string("fused_losses: ") + cudaGetErrorString(error));
}

}  // namespace fused_losses

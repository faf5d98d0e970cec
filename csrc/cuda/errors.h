// What CUDA's runtime says when it cannot do what it was asked for.
#pragma once

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

namespace fused_losses {

inline void check_cuda(cudaError_t error) {
  if (error == cudaSuccess) return;
  // The runtime keeps an error until someone asks for it: torch does after its next operator, which it would blame.
  static_cast<void>(cudaGetLastError());
  if (error == cudaErrorNoKernelImageForDevice) {
    throw std::runtime_error(
        "fused_losses: the CUDA library was not built for this GPU: reinstall with TORCH_CUDA_ARCH_LIST, or set "
        "FUSED_LOSSES_BACKEND=triton");
  }
  throw std::runtime_error(std::string("fused_losses: ") + cudaGetErrorString(error));
}

}  // namespace fused_losses

// What the mean over labels divides by, in a launch of its own: for more labels than each block should read for itself.
#include "labels.cuh"

namespace fused_losses {
namespace {

struct Kernel {
  SoftmaxArguments tensors;
  Reduced sum;
};

__global__ void __launch_bounds__(kThreads) label_divisor_kernel(const __grid_constant__ Kernel kernel) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  finish(weight_of_labels(kernel.tensors, first, static_cast<int64_t>(gridDim.x) * kThreads), kernel.sum, 1);
}

}  // namespace

void label_divisor(const SoftmaxArguments& arguments, const Reduced& sum, const Queue& queue) {
  const int64_t tiles = (arguments.outer * arguments.inner + kThreads - 1) / kThreads;
  launch(label_divisor_kernel, queue, blocks_for(queue, tiles, kThreads), kThreads, Kernel{arguments, sum});
}

}  // namespace fused_losses

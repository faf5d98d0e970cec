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
  // A thread has a pack of labels or more. As many blocks on every device, so that weights are added up in one order.
  const int64_t tiles = arguments.outer * arguments.inner / (kPack<int64_t> * kThreads);
  const int blocks = static_cast<int>(std::clamp<int64_t>(tiles, 1, kPointwiseBlocks));
  launch(label_divisor_kernel, queue, blocks, kThreads, Kernel{arguments, sum});
}

}  // namespace fused_losses

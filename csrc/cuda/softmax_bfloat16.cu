// Softmax in bfloat16.
#include "softmax_engine.cuh"

namespace fused_losses {

template void run_softmax<BFloat16>(const SoftmaxKernel&, const Queue&);

}  // namespace fused_losses

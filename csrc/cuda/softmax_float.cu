// Softmax in float.
#include "softmax_engine.cuh"

namespace fused_losses {

template void run_softmax<float>(const SoftmaxKernel&, const Queue&);

}  // namespace fused_losses

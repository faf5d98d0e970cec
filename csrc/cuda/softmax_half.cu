// Softmax in half.
#include "softmax_engine.cuh"

namespace fused_losses {

template void run_softmax<Half>(const SoftmaxKernel&, const Queue&);

}  // namespace fused_losses

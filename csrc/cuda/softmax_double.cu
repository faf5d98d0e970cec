// Softmax in double.
#include "softmax_engine.cuh"

namespace fused_losses {

template void run_softmax<double>(const SoftmaxKernel&, const Queue&);

}  // namespace fused_losses

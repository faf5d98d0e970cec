// Softmax in double.
#include "softmax_engine.cuh"

namespace fused_losses {

FUSED_LOSSES_INSTANTIATE_SOFTMAX(double)

}  // namespace fused_losses

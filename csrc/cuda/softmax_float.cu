// Softmax in float.
#include "softmax_engine.cuh"

namespace fused_losses {

FUSED_LOSSES_INSTANTIATE_SOFTMAX(float)

}  // namespace fused_losses

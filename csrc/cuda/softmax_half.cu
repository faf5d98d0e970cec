// Softmax in half.
#include "softmax_engine.cuh"

namespace fused_losses {

FUSED_LOSSES_INSTANTIATE_SOFTMAX(Half)

}  // namespace fused_losses

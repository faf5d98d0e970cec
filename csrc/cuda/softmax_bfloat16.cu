// Softmax in bfloat16.
#include "softmax_engine.cuh"

namespace fused_losses {

FUSED_LOSSES_INSTANTIATE_SOFTMAX(BFloat16)

}  // namespace fused_losses

// Softmax in bfloat16.
#include "softmax.cuh"

namespace fused_losses {

FUSED_LOSSES_INSTANTIATE_SOFTMAX(BFloat16)

}  // namespace fused_losses

// The pointwise engine, compiled for the formulas of formulas/regression.h.
#include "pointwise_engine.cuh"

#include "../formulas/regression.h"

namespace fused_losses {

FUSED_LOSSES_REGRESSION(FUSED_LOSSES_INSTANTIATE_POINTWISE)

}  // namespace fused_losses

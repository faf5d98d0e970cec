// The pointwise engine, compiled for the formulas of formulas/margin.h.
#include "pointwise_engine.cuh"

#include "../formulas/margin.h"

namespace fused_losses {

FUSED_LOSSES_MARGIN(FUSED_LOSSES_INSTANTIATE_POINTWISE)

}  // namespace fused_losses

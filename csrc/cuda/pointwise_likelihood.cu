// The pointwise engine, compiled for the formulas of formulas/likelihood.h.
#include "pointwise_engine.cuh"

#include "../formulas/likelihood.h"

namespace fused_losses {

FUSED_LOSSES_LIKELIHOOD(FUSED_LOSSES_INSTANTIATE_POINTWISE)

}  // namespace fused_losses

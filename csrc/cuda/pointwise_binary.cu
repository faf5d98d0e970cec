// The pointwise engine, compiled for the formulas of formulas/binary.h.
#include "pointwise_engine.cuh"

#include "../formulas/binary.h"

namespace fused_losses {

FUSED_LOSSES_BINARY(FUSED_LOSSES_INSTANTIATE_POINTWISE)

}  // namespace fused_losses

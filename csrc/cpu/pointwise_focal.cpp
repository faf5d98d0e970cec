// The pointwise engine, compiled for the formulas of formulas/focal.h.
#include "pointwise_loops.h"

#include "../formulas/focal.h"

namespace fused_losses {

FUSED_LOSSES_FOCAL(FUSED_LOSSES_INSTANTIATE_POINTWISE)

}  // namespace fused_losses

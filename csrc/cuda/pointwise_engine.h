// The pointwise engine on a GPU: what its operators know of it.
#pragma once

#include "../pointwise_arguments.h"
#include "engine.h"

namespace fused_losses {

// Launches the kernel. Losses, derivatives and the reduced loss are written where there is memory for them.
template <class Formula>
void pointwise(const PointwiseArguments& arguments, const Scaling& scaling, const Reduced& reduced, const Queue& queue);

// Writes what reduction="mean" divides by to `sum`, where that is not the number of elements: the number of elements
// that are not ignored; or the sum of the weights, over `copies`, which is how often the iteration visits each of them.
void pointwise_divisor(const PointwiseArguments& arguments, bool sum_weights, double copies, const Reduced& sum,
                       const Queue& queue);

}  // namespace fused_losses

// The pointwise engine on a GPU: what its operators know of it.
#pragma once

#include "../pointwise_arguments.h"
#include "engine.h"

namespace fused_losses {

// Launches the kernel: losses, derivatives and the reduced loss go where there is room for them.
template <class Formula>
void pointwise(const PointwiseArguments& arguments, const Scaling& scaling, const Reduced& reduced, const Queue& queue);

// What reduction="mean" divides by, where that is not the number of elements: the number that is not ignored, or the
// sum of the weights, of which each is there so many times.
void pointwise_divisor(const PointwiseArguments& arguments, bool sum_weights, double copies, const Reduced& sum,
                       const Queue& queue);

}  // namespace fused_losses

// The pointwise engine on the CPU: what its operators (pointwise_ops.cpp) know of it.
#pragma once

#include "../pointwise_arguments.h"

namespace fused_losses {

// Writes the results that the arguments ask for, and returns the sum of the values, or 0 if it is not asked for. Throws
// the formula's DomainError if an element does not meet its conditions, after it has written the results: where these
// may overwrite the input, call it first with arguments that ask for none.
template <class Formula>
double pointwise(PointwiseArguments arguments);

// What reduction="mean" divides by, where that is not the number of elements: the sum of the weights, or the number of
// elements that are not ignored.
double pointwise_divisor(const PointwiseArguments& arguments, bool sum_weights);

}  // namespace fused_losses

// The pointwise engine: elements in, value and derivatives out, reduced.
#pragma once

#include "../pointwise_arguments.h"

namespace fused_losses {

// Returns the sum of the values, if wanted. Throws the formula's DomainError for operands outside its domain;
// where nothing at all is wanted, that is all it does.
template <class Formula>
double pointwise(const PointwiseArguments& arguments);

// What reduction="mean" divides by, where that is not the number of elements: the number that is not
// ignored, or the sum of the weights.
double pointwise_divisor(const PointwiseArguments& arguments, bool sum_weights);

}  // namespace fused_losses

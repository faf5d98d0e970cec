// The pointwise engine: elements in, value and derivatives out, reduced.
#pragma once

#include "../views.h"

namespace fused_losses {

struct PointwiseArguments {
  Iteration iteration;
  // input, target, and the loss's third operand, if any
  Operand operands[3];
  // Multiplied into the value and the derivatives: the element weight and, going backward with
  // reduction="none", the upstream gradient of each element.
  Operand factors[2];
  bool has_ignored = false;
  double ignored = 0;  // elements whose target equals this contribute nothing
  const double* parameters = nullptr;
  double scale = 1;  // of the derivatives
  bool wants_sum = false;
  Result values;  // reduction="none"
  Result derivatives[3];
};

// Returns the sum of the values, if wanted. Throws the formula's DomainError for operands outside its domain;
// where nothing at all is wanted, that is all it does.
template <class Formula>
double pointwise(const PointwiseArguments& arguments);

// What reduction="mean" divides by, where that is not the number of elements: the number that is not
// ignored, or the sum of the weights.
double pointwise_divisor(const PointwiseArguments& arguments, bool sum_weights);

}  // namespace fused_losses

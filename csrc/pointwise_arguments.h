// What the pointwise engines are given: one call of a loss, its tensors seen in the order of one iteration over their
// elements.
#pragma once

#include "views.h"

namespace fused_losses {

struct PointwiseArguments {
  // Over the N elements of the operands, broadcast against each other.
  Iteration iteration;
  // Input, target, and the loss's third operand, if there is one; floating point, each of its own dtype.
  Operand operands[3];
  // What value and derivatives of each element are multiplied by: the element weight and, going backward with
  // reduction="none", the upstream gradient of each element.
  Operand factors[2];
  // Whether elements whose target equals `ignored` contribute nothing.
  bool has_ignored = false;
  double ignored = 0;
  // The loss's own numbers, in the order of the registry; as many as the formula reads.
  const double* parameters = nullptr;
  // What the derivatives are multiplied by besides.
  double scale = 1;
  // Whether the sum of the values is asked for.
  bool wants_sum = false;
  // (N), in the loss's dtype: the value of each element, for reduction="none".
  Result values;
  // (N) each, in the dtype of their operand.
  Result derivatives[3];
};

}  // namespace fused_losses

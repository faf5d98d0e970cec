// What the pointwise engines are given.
#pragma once

#include "views.h"

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

}  // namespace fused_losses

// What the engines of losses of whole rows are given: operands viewed as (rows, length), a loss for each row.
#pragma once

#include "views.h"

namespace fused_losses {

// Of each row: where it begins (in the iteration over rows), and how far apart its elements are.
struct RowOperand {
  Operand rows;
  int64_t stride = 0;
};

struct RowsArguments {
  Iteration rows;
  int64_t length = 0;
  // anchor, positive and negative, or two inputs and a target, which is one number for each row
  RowOperand operands[3];
  RowOperand upstream;  // reduction="none": the upstream gradient of each row
  const double* parameters = nullptr;
  int parameter_count = 0;
  double scale = 1;  // of the derivatives
  // Results, described as operands are: they may lie as the input does.
  RowOperand values;  // reduction="none"
  RowOperand derivatives[3];
};

}  // namespace fused_losses

// What the engines of losses of vectors are given: operands viewed as (vectors, length), a loss for each vector.
#pragma once

#include "views.h"

namespace fused_losses {

// Of each vector: where it begins (in the iteration over vectors), and how far apart its elements are.
struct VectorOperand {
  Operand starts;
  int64_t stride = 0;
};

struct VectorsArguments {
  Iteration vectors;
  int64_t length = 0;
  // anchor, positive and negative, or two inputs and a target, which is one number for each vector
  VectorOperand operands[3];
  VectorOperand upstream;  // reduction="none": the upstream gradient of each vector
  const double* parameters = nullptr;
  int parameter_count = 0;
  double scale = 1;  // of the derivatives
  // Results, described as operands are: they may lie as the input does.
  VectorOperand values;  // reduction="none"
  VectorOperand derivatives[3];
};

}  // namespace fused_losses

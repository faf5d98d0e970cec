// What the engines for losses of vectors are given: operands viewed as (N, D), N vectors of D elements, and a loss for
// each vector.
#pragma once

#include "views.h"

namespace fused_losses {

// A tensor of N vectors: where each begins, as an operand of the iteration over vectors, and how far apart the elements
// of a vector are; stride 0 where a vector of one element is broadcast.
struct VectorOperand {
  Operand starts;
  int64_t stride = 0;
};

struct VectorsArguments {
  Iteration vectors;   // over the N vectors
  int64_t length = 0;  // D
  // Floating point, each of its own dtype: anchor, positive and negative, (N, D) each; or two inputs, (N, D), and a
  // target, (N).
  VectorOperand operands[3];
  // (N), reduction="none": the upstream gradient of each vector's loss.
  VectorOperand upstream;
  // The loss's own numbers; vectors_engine.h says which.
  const double* parameters = nullptr;
  int parameter_count = 0;
  // What the derivatives are multiplied by.
  double scale = 1;
  // Results are described as operands are, since they may lie as the input does.
  VectorOperand values;          // (N), in the loss's dtype: reduction="none"
  VectorOperand derivatives[3];  // (N, D) each, in the dtype of their operand
};

}  // namespace fused_losses

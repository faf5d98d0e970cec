// What the class margin engines are given: N rows of C scores, and for each row one target or a list of them.
#pragma once

#include "views.h"

namespace fused_losses {

// A tensor of rows. Strides are in elements; one that a tensor has no use for is 0.
struct RowTensor {
  void* data = nullptr;  // null: absent
  ScalarType dtype = ScalarType::Float;
  int64_t row_stride = 0, class_stride = 0;
};

struct ClassMarginArguments {
  int64_t rows = 1, classes = 1;  // N, C
  RowTensor input;                // (N, C), floating point: the scores
  // int64: (N), the target of each row; or, with several targets, (N, C): a list for each row, which ends at the first
  // -1 or with the row.
  RowTensor labels;
  bool several_targets = false;
  RowTensor weight;    // (C), for one target alone: what a row is multiplied by is its target's
  RowTensor upstream;  // (N), reduction="none": the upstream gradient of each row's loss
  int p = 1;           // the power of each gap, 1 or 2
  double margin = 1;
  double scale = 1;    // what the gradient is multiplied by
  Result losses;       // (N), contiguous, in the loss's dtype: reduction="none"
  RowTensor gradient;  // (N, C), in the input's dtype; it may be the input's memory
};

}  // namespace fused_losses

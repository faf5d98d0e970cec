// What the class margin engines are given: rows of classes, a target or a list of targets for each.
#pragma once

#include "views.h"

namespace fused_losses {

// Strides in elements.
struct RowTensor {
  void* data = nullptr;  // null: absent
  ScalarType dtype = ScalarType::Float;
  int64_t row_stride = 0, class_stride = 0;
};

struct ClassMarginArguments {
  int64_t rows = 1, classes = 1;
  RowTensor input;
  RowTensor labels;  // Long
  // Whether labels hold a list of targets for each row, as many entries as there are classes, which ends at the
  // first -1; or one target.
  bool several_targets = false;
  RowTensor weight;    // class_stride only; of the row's target, so not with several targets
  RowTensor upstream;  // row_stride only; reduction="none": the upstream gradient of each row
  int p = 1;
  double margin = 1;
  double scale = 1;  // of the gradient
  Result losses;     // reduction="none", a row after the other
  RowTensor gradient;
};

}  // namespace fused_losses

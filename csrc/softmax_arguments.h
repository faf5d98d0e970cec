// What the softmax engines are given: logits viewed as (outer, classes, inner), one softmax for each
// (outer, inner).
#pragma once

#include "formulas/softmax_terms.h"
#include "views.h"

namespace fused_losses {

// In elements. outer[d] goes with outer_sizes[d].
struct ClassStrides {
  int64_t classes = 0, inner = 0;
  int64_t outer[kLoopDims];
};

struct ClassTensor {
  void* data = nullptr;  // null: absent
  ScalarType dtype = ScalarType::Float;
  ClassStrides strides;
};

struct SoftmaxArguments {
  int64_t outer = 1, classes = 1, inner = 1;
  int outer_dims = 0;  // `outer` is the product of so many sizes
  int64_t outer_sizes[kLoopDims];
  ClassTensor input;
  ClassTensor labels;         // Long or Byte; strides.classes is unused
  ClassTensor probabilities;  // instead of labels
  ClassTensor weight;         // strides.classes only
  int64_t ignore_index = -100;
  double label_smoothing = 0;
  SoftmaxTerms terms;
  double scale = 1;      // of the gradients
  ClassTensor upstream;  // reduction="none": the upstream gradient of each row
  // Instead of what the mean divides by.
  const double* normalizer = nullptr;
  ClassTensor lse_gradient;  // of each row, the upstream gradient of log-sum-exp, which `scale` does not multiply

  // Going backward, losses are not computed again.
  bool backward = false;
  // Of each row, a number near the maximum, the sum of exponentials relative to it, and, where `terms` have an
  // entropy, the excess over that sum; a row after the other, in Compute<input>. Written going forward, read going
  // backward, unless null.
  void* reference = nullptr;
  void* sum = nullptr;
  void* mean_excess = nullptr;
  int64_t* argmax = nullptr;  // of each row, the class of the largest logit; -1 where it is ignored

  Result losses;  // reduction="none", a row after the other
  ClassTensor input_gradient;
  ClassTensor probabilities_gradient;
};

// Where the row (outer, inner) of a tensor of these strides begins, in elements
// after the first row's beginning.
FUSED_LOSSES_HOST_DEVICE inline int64_t offset_of(const SoftmaxArguments& arguments, const ClassStrides& strides,
                                                  int64_t outer, int64_t inner) {
  return inner * strides.inner + offset_of(outer, arguments.outer_dims, arguments.outer_sizes, strides.outer);
}

}  // namespace fused_losses

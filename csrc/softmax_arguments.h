// What the softmax engines are given: logits viewed as (outer, classes, inner), one softmax for each (outer, inner).
//
// A position is one (outer, inner); its row is its classes, wherever they lie. Positions are numbered outer *
// inner_size + inner, which is their order in the input (N, C, d1, ...) without C, and P is their number.
#pragma once

#include "formulas/softmax_terms.h"
#include "views.h"

namespace fused_losses {

// Strides in elements. `outer` is made of several dimensions: outer[d] goes with outer_sizes[d].
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

  ClassTensor input;          // (outer, classes, inner), floating point: logits, or log-probabilities for nll
  ClassTensor labels;         // (outer, inner), int64 or uint8; or absent
  ClassTensor probabilities;  // (outer, classes, inner), in place of labels; its compute type is the input's
  ClassTensor weight;         // (classes)
  int64_t ignore_index = -100;
  double label_smoothing = 0;
  SoftmaxTerms terms;

  double scale = 1;      // what the gradients are multiplied by
  ClassTensor upstream;  // (outer, inner), reduction="none": the upstream gradient of each position's loss
  // One number: what the mean divides by, in place of what the engine would find.
  const double* normalizer = nullptr;
  // (outer, inner): the upstream gradient of each position's log-sum-exp, which `scale` does not multiply.
  ClassTensor lse_gradient;

  // Going backward, losses are not computed again.
  bool backward = false;

  // (P) each, in the compute type of the input, or null: the statistics of each position. Written going forward, read
  // going backward.
  void* reference = nullptr;    // a number near the largest logit
  void* sum = nullptr;          // of the exponentials relative to it
  void* mean_excess = nullptr;  // where the terms have an entropy: the mean of logit - reference under the softmax

  int64_t* argmax = nullptr;  // (P): the class of the largest logit, -1 where the position is ignored

  Result losses;                       // (P), in the loss's dtype: reduction="none"
  ClassTensor input_gradient;          // (outer, classes, inner), in the input's dtype; it may be the input's memory
  ClassTensor probabilities_gradient;  // (outer, classes, inner), in the dtype of the probabilities
};

// Where the row of (outer, inner) begins in a tensor of these strides, in elements from the tensor's beginning.
FUSED_LOSSES_HOST_DEVICE inline int64_t offset_of(const SoftmaxArguments& arguments, const ClassStrides& strides,
                                                  int64_t outer, int64_t inner) {
  return inner * strides.inner + offset_of(outer, arguments.outer_dims, arguments.outer_sizes, strides.outer);
}

}  // namespace fused_losses

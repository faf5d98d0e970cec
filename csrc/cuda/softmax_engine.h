// The softmax engine and that of the negative log-likelihood on a GPU: what their operators know of them.
#pragma once

#include "../softmax_arguments.h"
#include "engine.h"

namespace fused_losses {

// What the mean over labels divides by must be known before anything is written: each block adds it up for itself, or a
// launch of its own has done so (label_divisor()).
struct LabelDivisor {
  bool by_each_block = false;
};

void cross_entropy(const SoftmaxArguments& arguments, const Scaling& scaling, LabelDivisor divisor,
                   const Reduced& reduced, const Queue& queue);

// The same for input that holds log-probabilities already: the negative log-likelihood.
void nll(const SoftmaxArguments& arguments, const Scaling& scaling, LabelDivisor divisor, const Reduced& reduced,
         const Queue& queue);

// Writes the sum of the weights of the labels that are not ignored to `sum`, or their number where there is no weight.
void label_divisor(const SoftmaxArguments& arguments, const Reduced& sum, const Queue& queue);

}  // namespace fused_losses

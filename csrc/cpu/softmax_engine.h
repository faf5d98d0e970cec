// The softmax engine and the engine of the negative log-likelihood on the CPU: what their operators (softmax_ops.cpp)
// know of them.
#pragma once

#include "../softmax_arguments.h"

namespace fused_losses {

// Checks the labels and returns what reduction="mean" divides by: the sum of the weights of the labels that are not
// ignored, or the number of positions where targets are probabilities. Throws std::out_of_range for a label outside
// [0, classes) that is not ignore_index. Must be called before either engine, which trusts the labels.
double label_divisor(const SoftmaxArguments& arguments);

// Writes the results that the arguments ask for, and returns the sum of the losses of all positions; 0 going backward.
double cross_entropy(const SoftmaxArguments& arguments);

// The same for input that holds log-probabilities already: the negative log-likelihood.
double nll(const SoftmaxArguments& arguments);

}  // namespace fused_losses

// The softmax cross-entropy engine on the CPU.
#pragma once

#include "../softmax_arguments.h"

namespace fused_losses {

// Checks the labels and returns what reduction="mean" divides by: the weights of the rows' classes, added up,
// or the number of rows where targets are probabilities. Throws std::out_of_range for a label outside
// [0, classes) that is not ignore_index.
double label_divisor(const SoftmaxArguments& arguments);

// Returns the sum of the rows' losses (0 going backward).
double cross_entropy(const SoftmaxArguments& arguments);

// The same for input that holds log-probabilities already: the negative log-likelihood.
double nll(const SoftmaxArguments& arguments);

}  // namespace fused_losses

// What a pointwise loss is made of: the value and the derivatives of one element. There is no loop, pointer or thread
// in a formula. V is a float, a double, or a vector of either; CPU and CUDA compile the same text.
//
// A formula is a struct with
//   kOperands        how many tensors it reads: 2, input and target; or 3
//   kOptionalThird   whether the third may be absent: terms() then exists for two operands and for three
//   kDerivatives     how many operands it has derivatives for, from the first one on
//   kPair            of three derivatives, the two that are usually wanted together, as bits of Wanted; else 0
//   kConditions      how many conditions every element must meet: holds(k, operands...) says whether the k-th is met;
//                    where it is not, the CPU's engine throws a DomainError with the text refusal(k), and CUDA's ends
//                    with an assertion of that text
//   kIgnores         whether elements can be ignored by the value of their target
//   kParameters      how many parameters it takes
//   expected(parameters)  what they should be, if they are not: "be ..."; else null
//   kFunctionsOf     the operands that exponentials, logarithms and reciprocals are taken of, as bits of Wanted.
//                    If these have 16 bits, as the results have, approximations are exact enough
//   kHasFlag         whether a parameter is a flag that a GPU's kernels are compiled for: flag() and set_flag() exist
//   kMeanOverWeight  whether reduction="mean" divides by the sum of the weights instead of the number of elements
//   a constructor from the loss's parameters, in the order of the registry
//   terms(operands...)  value and derivatives
//   scaled(k, derivative, scale, operands...)  the k-th derivative times the upstream gradient and the weight
// Element weights, ignored elements, reductions and upstream gradients are the engines' work. Parameters such as `full`
// are the same for all elements, so a branch on them is predicted and costs next to nothing.
#pragma once

#include <stdexcept>

#include "../wanted.h"
#include "math.h"

namespace fused_losses {

template <class V, int kCount>
struct Terms {
  V value;
  V derivative[kCount];
};

struct PointwiseFormula {
  static constexpr int kOperands = 2;
  static constexpr bool kOptionalThird = false;
  static constexpr int kDerivatives = 2;
  static constexpr int kPair = 0;
  static constexpr int kConditions = 0;
  static constexpr bool kIgnores = false;
  static constexpr bool kMeanOverWeight = false;
  static constexpr int kParameters = 0;
  static constexpr int kFunctionsOf = 0;
  static constexpr bool kHasFlag = false;
  FUSED_LOSSES_HOST_DEVICE explicit PointwiseFormula(const double*) {}
  bool flag() const { return false; }
  static const char* expected(const double*) { return nullptr; }

  template <class V, class... Operands>
  FUSED_LOSSES_HOST_DEVICE static V scaled(int, V derivative, V scale, Operands...) {
    return derivative * scale;
  }
};

}  // namespace fused_losses

// What every pointwise loss is made of: its value and its derivatives, and nothing else. No loop, pointer or
// thread here; V is a float, a double, or a vector of either, and the same text is compiled for CPU and CUDA.
//
// A formula is a struct with
//   kOperands        how many tensors it reads: input and target, or a third one besides
//   kOptionalThird   whether the third may be absent
//   kDerivatives     with respect to how many of them it has derivatives, from the first on
//   kNeedsDomain     whether in_domain(operands...) must hold for every element; if not, the engine throws a
//                    DomainError with the text kOutside
//   kIgnores         whether elements can be ignored by the value of their target
//   kMeanOverWeight  whether reduction="mean" divides by the sum of the weights instead of the count
//   a constructor from the loss's parameters, in the order of the registry
//   terms(operands...)  value and derivatives
// Element weights, ignored elements, reductions and upstream gradients belong to the engines. Parameters such as
// `full` are the same for all elements: a branch on them costs nothing.
#pragma once

#include <stdexcept>

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
  static constexpr bool kNeedsDomain = false;
  static constexpr bool kIgnores = false;
  static constexpr bool kMeanOverWeight = false;
  FUSED_LOSSES_HOST_DEVICE explicit PointwiseFormula(const double*) {}
};

}  // namespace fused_losses

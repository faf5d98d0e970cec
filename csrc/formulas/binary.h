// Binary cross-entropy, and the losses that are made of it: of probabilities, or of sigmoids of one number per element.
#pragma once

#include "pointwise.h"

namespace fused_losses {

// The softplus log(1 + e^-x), the sigmoids s(x) and s(-x), all from one exponential of -|x|, which never overflows.
template <class V>
struct Sigmoid {
  V softplus_of_minus, sigmoid, sigmoid_of_minus;

  FUSED_LOSSES_HOST_DEVICE explicit Sigmoid(V x) {
    const V one = splat<V>(1);
    const V e = exp_below_88(-abs(x));
    const auto positive = x >= splat<V>(0);
    const V larger = reciprocal_of_one_to_two(one + e);
    const V smaller = e * larger;
    softplus_of_minus = log1p_of_unit(e) + select(positive, splat<V>(0), -x);
    sigmoid = select(positive, larger, smaller);
    sigmoid_of_minus = select(positive, smaller, larger);
  }
};

// -t log(x) - (1 - t) log(1 - x), with the logarithms held above -100 and the slope's denominator above
// 1e-12, as torch does, so that x = 0 and x = 1 give finite losses and gradients.
struct BinaryCrossEntropy : PointwiseFormula {
  static constexpr bool kIgnores = true;
  static constexpr bool kNeedsDomain = true;
  using DomainError = std::runtime_error;
  static constexpr const char* kOutside = "all elements of input should be between 0 and 1";
  using PointwiseFormula::PointwiseFormula;

  template <class V>
  FUSED_LOSSES_HOST_DEVICE static auto in_domain(V x, V) {
    return (x >= splat<V>(0)) & (x <= splat<V>(1));
  }

  template <class V>
  FUSED_LOSSES_HOST_DEVICE Terms<V, 2> terms(V x, V t) const {
    const V one = splat<V>(1);
    const V log_x = log(x);
    const V log_rest = log1p(-x);
    const V floor = splat<V>(-100);
    const V value = (t - one) * select(log_rest < floor, floor, log_rest) - t * select(log_x < floor, floor, log_x);
    const V variance = (one - x) * x;
    const V smallest = splat<V>(1e-12f);  // torch's constant is a float32 for any input, too
    return {value, {(x - t) / select(variance < smallest, smallest, variance), log_rest - log_x}};
  }
};

// With sigmoid s, softplus p(x) = log(1 + e^x) and pos_weight w (1 where there is none):
//   (1 - t) x + (1 + (w - 1) t) p(-x),   d/dx = (1 - t) s(x) - w t s(-x),   d/dt = w p(-x) - p(x).
struct BinaryCrossEntropyWithLogits : PointwiseFormula {
  static constexpr int kOperands = 3;
  static constexpr bool kOptionalThird = true;
  static constexpr bool kIgnores = true;
  using PointwiseFormula::PointwiseFormula;

  template <class V>
  FUSED_LOSSES_HOST_DEVICE Terms<V, 2> terms(V x, V t) const {
    const Sigmoid<V> parts(x);
    const V one = splat<V>(1);
    return {(one - t) * x + parts.softplus_of_minus, {(one - t) * parts.sigmoid - t * parts.sigmoid_of_minus, -x}};
  }

  template <class V>
  FUSED_LOSSES_HOST_DEVICE Terms<V, 2> terms(V x, V t, V w) const {
    const Sigmoid<V> parts(x);
    const V one = splat<V>(1);
    const V rest = one - t;
    return {rest * x + (one + (w - one) * t) * parts.softplus_of_minus,
            {rest * parts.sigmoid - w * t * parts.sigmoid_of_minus, (w - one) * parts.softplus_of_minus - x}};
  }
};

// Binary cross-entropy with logits, times `share`. The loss of a row is a mean over its C classes: share is 1 / C where
// the reduction does not divide by them already, as the mean over all elements does.
struct MultiLabelSoftMargin : PointwiseFormula {
  static constexpr int kParameters = 1;
  FUSED_LOSSES_HOST_DEVICE explicit MultiLabelSoftMargin(const double* parameters)
      : PointwiseFormula(parameters), share_(parameters[0]) {}

  template <class V>
  FUSED_LOSSES_HOST_DEVICE Terms<V, 2> terms(V x, V t) const {
    const Terms<V, 2> terms = BinaryCrossEntropyWithLogits(nullptr).terms(x, t);
    const V share = splat<V>(share_);
    return {share * terms.value, {share * terms.derivative[0], share * terms.derivative[1]}};
  }

 private:
  double share_;
};

// log(1 + e^(-t x)) for t = 1 or -1.
struct SoftMargin : PointwiseFormula {
  static constexpr int kDerivatives = 1;
  using PointwiseFormula::PointwiseFormula;

  template <class V>
  FUSED_LOSSES_HOST_DEVICE Terms<V, 1> terms(V x, V t) const {
    const Sigmoid<V> parts(t * x);
    return {parts.softplus_of_minus, {-t * parts.sigmoid_of_minus}};
  }
};

// The losses of this file: the operator's name and its formula.
#define FUSED_LOSSES_BINARY(X)                                      \
  X(binary_cross_entropy, BinaryCrossEntropy)                       \
  X(binary_cross_entropy_with_logits, BinaryCrossEntropyWithLogits) \
  X(multilabel_soft_margin_loss, MultiLabelSoftMargin)              \
  X(soft_margin_loss, SoftMargin)

}  // namespace fused_losses

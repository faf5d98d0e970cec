// Binary cross-entropy, and the losses that are made of it: of probabilities, or of sigmoids of one number per element.
#pragma once

#include "pointwise.h"

namespace fused_losses {

// log(1 + e) for e in [0, 1], and the same plus y, given e / (1 + e), with which approximations are shorter.
FUSED_LOSSES_WORD T log1p_of_unit(T e, T) { return log1p_of_unit(e); }
FUSED_LOSSES_WORD T add_log1p_of_unit(T e, T sigmoid, T y) { return log1p_of_unit(e, sigmoid) + y; }

// The sigmoids s(x) and s(-x) and the softplus log(1 + e^-x), all from one exponential of -|x|, which never overflows.
template <class V>
struct Sigmoid {
  V x;
  decltype(V{} >= V{}) positive;  // whether x >= 0
  V larger, smaller;              // s(|x|) and s(-|x|)
  V e;                            // e^-|x|

  FUSED_LOSSES_HOST_DEVICE explicit Sigmoid(V x) : x(x), positive(x >= splat<V>(0)) {
    const V one = splat<V>(1);
    e = exp_below_88(-abs(x));
    larger = reciprocal_of_one_to_two(one + e);
    smaller = e * larger;
  }
  FUSED_LOSSES_HOST_DEVICE V sigmoid() const { return select(positive, larger, smaller); }
  FUSED_LOSSES_HOST_DEVICE V sigmoid_of_minus() const { return select(positive, smaller, larger); }
  FUSED_LOSSES_HOST_DEVICE V excess() const { return log1p_of_unit(e, smaller); }  // log(1 + e^-|x|)
  FUSED_LOSSES_HOST_DEVICE V softplus_of_minus() const {
    return add_log1p_of_unit(e, smaller, select(positive, splat<V>(0), -x));
  }
};

// Targets of which the share `smoothing` is spread evenly over both classes: t (1 - smoothing) + smoothing / 2.
class SmoothedTarget {
 public:
  static const char* expected(const double* parameters) {
    return parameters[0] >= 0 && parameters[0] <= 1 ? nullptr : "hold a label smoothing between 0 and 1";
  }
  FUSED_LOSSES_HOST_DEVICE explicit SmoothedTarget(double smoothing) : slope_(1 - smoothing), least_(smoothing / 2) {}

  template <class V>
  FUSED_LOSSES_HOST_DEVICE V operator()(V t) const {
    return multiply_add(t, splat<V>(slope_), splat<V>(least_));
  }
  template <class V>
  FUSED_LOSSES_HOST_DEVICE V slope() const {
    return splat<V>(slope_);
  }

 private:
  double slope_, least_;
};

// -t log(x) - (1 - t) log(1 - x), with the logarithms held above -100 and the slope's denominator above
// 1e-12, as torch does, so that x = 0 and x = 1 give finite losses and gradients.
struct BinaryCrossEntropy : PointwiseFormula {
  static constexpr int kFunctionsOf = kInput;
  static constexpr bool kIgnores = true;
  static constexpr int kConditions = 2;
  static constexpr int kParameters = 1;
  using DomainError = std::runtime_error;
  static const char* expected(const double* parameters) { return SmoothedTarget::expected(parameters); }
  FUSED_LOSSES_HOST_DEVICE explicit BinaryCrossEntropy(const double* parameters)
      : PointwiseFormula(parameters), smoothed_(parameters[0]) {}

  FUSED_LOSSES_HOST_DEVICE static constexpr const char* refusal(int k) {
    return k == 0 ? "all elements of input should be between 0 and 1"
                  : "all elements of target should be between 0 and 1";
  }
  template <class V>
  FUSED_LOSSES_HOST_DEVICE static auto holds(int k, V x, V t) {
    // terms() needs the variance, too.
    return k == 0 ? (splat<V>(1) - x) * x >= splat<V>(0) : is_in_unit(t);
  }

  template <class V>
  FUSED_LOSSES_HOST_DEVICE Terms<V, 2> terms(V x, V label) const {
    const V one = splat<V>(1), t = smoothed_(label);
    const V log_x = log_of_unit(x);
    const V log_rest = log_of_complement(x);
    const V floor = splat<V>(-100);
    const V value =
        multiply_add(t - one, select(log_rest < floor, floor, log_rest), -t * select(log_x < floor, floor, log_x));
    const V variance = (one - x) * x;
    const V smallest = splat<V>(1e-12f);  // torch's constant is a float32 for any input, too
    return {value,
            {divide_by_normal(x - t, select(variance < smallest, smallest, variance)),
             (log_rest - select(x == splat<V>(0), splat<V>(-std::numeric_limits<double>::infinity()), log_x)) *
                 smoothed_.template slope<V>()}};
  }

 private:
  SmoothedTarget smoothed_;
};

// With sigmoid s, softplus p(x) = log(1 + e^x) and pos_weight w (1 where there is none):
//   (1 - t) x + (1 + (w - 1) t) p(-x),   d/dx = (1 - t) s(x) - w t s(-x),   d/dt = w p(-x) - p(x).
// Without w, d/dx is s(x) - t. For a positive x, it is (1 - t) - s(-x), of which nothing cancels at t = 1.
struct BinaryCrossEntropyWithLogits : PointwiseFormula {
  static constexpr int kFunctionsOf = kInput;
  static constexpr int kOperands = 3;
  static constexpr bool kOptionalThird = true;
  static constexpr bool kIgnores = true;
  static constexpr int kParameters = 1;
  static const char* expected(const double* parameters) { return SmoothedTarget::expected(parameters); }
  FUSED_LOSSES_HOST_DEVICE explicit BinaryCrossEntropyWithLogits(const double* parameters)
      : PointwiseFormula(parameters), smoothed_(parameters[0]) {}

  template <class V>
  FUSED_LOSSES_HOST_DEVICE Terms<V, 2> terms(V x, V label) const {
    const Sigmoid<V> parts(x);
    const V t = smoothed_(label), rest = splat<V>(1) - t;
    return {multiply_add(rest, x, parts.softplus_of_minus()),
            {select(parts.positive, rest - parts.smaller, parts.smaller - t), -x * smoothed_.template slope<V>()}};
  }

  template <class V>
  FUSED_LOSSES_HOST_DEVICE Terms<V, 2> terms(V x, V label, V w) const {
    const Sigmoid<V> parts(x);
    const V t = smoothed_(label);
    const V one = splat<V>(1);
    const V rest = one - t, positives = w * t;
    // Where w t is infinite, torch subtracts it from itself: 0 times it is NaN, too, else nothing.
    const V slope = multiply_add(splat<V>(0), positives,
                                 multiply_add(rest, parts.sigmoid(), -positives * parts.sigmoid_of_minus()));
    // w p(-x) - p(x), which for a positive x is summed up in the order in which nothing cancels.
    const V of_target =
        select(parts.positive, (w - one) * parts.excess() - x, w * parts.softplus_of_minus() - parts.excess());
    const V share = multiply_add(w - one, t, one);
    return {multiply_add(rest, x, share * parts.softplus_of_minus()),
            {slope, of_target * smoothed_.template slope<V>()}};
  }

 private:
  SmoothedTarget smoothed_;
};

// Binary cross-entropy with logits, times `share`. With a = 1 - t for x >= 0 and a = -t below,
//   it is a x + log(1 + e^-|x|),   d/dx = a - s(-|x|) for x >= 0, a + s(-|x|) below:
// nothing cancels at t = 0 or 1, however large x is. The loss of a row is a mean over its C classes: share is 1 / C
// where the reduction does not divide by them already, as the mean over all elements does.
struct MultiLabelSoftMargin : PointwiseFormula {
  static constexpr int kFunctionsOf = kInput;
  static constexpr int kParameters = 1;
  FUSED_LOSSES_HOST_DEVICE explicit MultiLabelSoftMargin(const double* parameters)
      : PointwiseFormula(parameters), share_(parameters[0]) {}

  template <class V>
  FUSED_LOSSES_HOST_DEVICE Terms<V, 2> terms(V x, V t) const {
    const Sigmoid<V> parts(x);
    const V zero = splat<V>(0), above = select(parts.positive, splat<V>(1), zero);
    const V rest = above - t;
    // Torch multiplies the target by both sigmoids, of which the smaller one may be 0, and by both softplus, with
    // opposite signs. So of an infinite target, the slope may be NaN, and the value is.
    const V smallest = splat<V>(std::numeric_limits<typename Lane<V>::type>::denorm_min());
    const V sign = multiply_add(t, -smallest, multiply_add(above, splat<V>(-2), splat<V>(1)));
    const V slope = multiply_add(parts.smaller, sign, rest);
    const V value = multiply_add(t, zero, multiply_add(rest, x, parts.excess()));
    return {splat<V>(share_) * value, {slope, -x}};
  }

  template <class V>
  FUSED_LOSSES_HOST_DEVICE V scaled(int, V derivative, V scale, V, V) const {
    return derivative * (splat<V>(share_) * scale);
  }

 private:
  double share_;
};

// log(1 + e^(-t x)) for t = 1 or -1.
struct SoftMargin : PointwiseFormula {
  static constexpr int kFunctionsOf = kInput | kTarget;
  static constexpr int kDerivatives = 1;
  using PointwiseFormula::PointwiseFormula;

  template <class V>
  FUSED_LOSSES_HOST_DEVICE Terms<V, 1> terms(V x, V t) const {
    const Sigmoid<V> parts(t * x);
    return {parts.softplus_of_minus(), {-t * parts.sigmoid_of_minus()}};
  }
};

// The losses of this file: the operator's name and its formula.
#define FUSED_LOSSES_BINARY(X)                                      \
  X(binary_cross_entropy, BinaryCrossEntropy)                       \
  X(binary_cross_entropy_with_logits, BinaryCrossEntropyWithLogits) \
  X(multilabel_soft_margin_loss, MultiLabelSoftMargin)              \
  X(soft_margin_loss, SoftMargin)

}  // namespace fused_losses

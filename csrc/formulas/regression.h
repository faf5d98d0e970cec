// Losses of the difference of input and target.
#pragma once

#include "pointwise.h"

namespace fused_losses {

// z held between -limit and limit; NaN stays.
FUSED_LOSSES_WORD T clamped(T z, T limit) { return select(z > limit, limit, select(z < -limit, -limit, z)); }

// |x - t|. The derivative is 0 where x = t and, as that of torch, where the difference is NaN.
struct L1 : PointwiseFormula {
  static constexpr bool kMeanOverWeight = true;
  using PointwiseFormula::PointwiseFormula;

  template <class V>
  FUSED_LOSSES_HOST_DEVICE Terms<V, 2> terms(V x, V t) const {
    const V difference = x - t;
    return {abs(difference), {difference, -difference}};
  }

  // The sign of the difference times `scale`.
  template <class V>
  FUSED_LOSSES_HOST_DEVICE static V scaled(int, V difference, V scale, V, V) {
    const V zero = splat<V>(0);
    return select(abs(difference) > zero, multiply_sign(scale, difference), zero * scale);
  }
};

// (x - t)^2
struct MSE : PointwiseFormula {
  static constexpr bool kMeanOverWeight = true;
  using PointwiseFormula::PointwiseFormula;

  template <class V>
  FUSED_LOSSES_HOST_DEVICE Terms<V, 2> terms(V x, V t) const {
    const V difference = x - t;
    const V slope = difference + difference;
    return {difference * difference, {slope, -slope}};
  }
};

// With d = x - t: d^2 / 2 beta below |d| = beta, |d| - beta / 2 from there on. With s = d / beta, held between -1 and
// 1, both are s (d - s beta / 2).
struct SmoothL1 : PointwiseFormula {
  static constexpr int kParameters = 1;
  static const char* expected(const double* parameters) {
    return parameters[0] < 0 ? "be a beta that is not negative" : nullptr;
  }
  FUSED_LOSSES_HOST_DEVICE explicit SmoothL1(const double* parameters)
      : PointwiseFormula(parameters), beta_(parameters[0]) {}

  template <class V>
  FUSED_LOSSES_HOST_DEVICE Terms<V, 2> terms(V x, V t) const {
    using Limits = std::numeric_limits<typename Lane<V>::type>;
    const V zero = splat<V>(0), most = splat<V>(Limits::max()), least = splat<V>(Limits::denorm_min());
    // A beta may be infinite in V: s is 0 then, and must not be multiplied by it. The inverse of a tiny one may be
    // infinite, too, and must not be multiplied by a difference of 0.
    const V beta = splat<V>(beta_), quotient = splat<V>(1 / beta_);
    const V half = select(beta > most, zero, splat<V>(-0.5) * beta);
    const V inverse = select(quotient > most, most, select(quotient < least, least, quotient));
    const V difference = x - t;
    const V slope = clamped(difference * inverse, splat<V>(1));
    return {slope * multiply_add(slope, half, difference), {slope, -slope}};
  }

 private:
  double beta_;
};

// With d = x - t: d^2 / 2 below |d| = delta, delta (|d| - delta / 2) from there on. With s = d, held between -delta and
// delta, both are s (d - s / 2).
struct Huber : PointwiseFormula {
  static constexpr int kParameters = 1;
  static const char* expected(const double* parameters) {
    return parameters[0] < 0 ? "be a delta that is not negative" : nullptr;
  }
  FUSED_LOSSES_HOST_DEVICE explicit Huber(const double* parameters)
      : PointwiseFormula(parameters), delta_(parameters[0]) {}

  template <class V>
  FUSED_LOSSES_HOST_DEVICE Terms<V, 2> terms(V x, V t) const {
    const V difference = x - t;
    const V slope = clamped(difference, splat<V>(delta_));
    return {slope * multiply_add(slope, splat<V>(-0.5), difference), {slope, -slope}};
  }

 private:
  double delta_;
};

// The losses of this file: the operator's name and its formula.
#define FUSED_LOSSES_REGRESSION(X) \
  X(l1_loss, L1)                   \
  X(mse_loss, MSE)                 \
  X(smooth_l1_loss, SmoothL1)      \
  X(huber_loss, Huber)

}  // namespace fused_losses

// Losses of the difference of input and target.
#pragma once

#include "pointwise.h"

namespace fused_losses {

// |x - t|. The derivative is 0 where x = t and, as that of torch, where the difference is NaN.
struct L1 : PointwiseFormula {
  static constexpr bool kMeanOverWeight = true;
  using PointwiseFormula::PointwiseFormula;

  template <class V>
  FUSED_LOSSES_HOST_DEVICE Terms<V, 2> terms(V x, V t) const {
    const V difference = x - t;
    const V zero = splat<V>(0);
    const V sign = select(difference > zero, splat<V>(1), select(difference < zero, splat<V>(-1), zero));
    return {abs(difference), {sign, -sign}};
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

// With d = x - t: d^2 / 2 beta below |d| = beta, |d| - beta / 2 from there on.
struct SmoothL1 : PointwiseFormula {
  static constexpr int kParameters = 1;
  FUSED_LOSSES_HOST_DEVICE explicit SmoothL1(const double* parameters)
      : PointwiseFormula(parameters), beta_(parameters[0]) {}

  template <class V>
  FUSED_LOSSES_HOST_DEVICE Terms<V, 2> terms(V x, V t) const {
    const V difference = x - t;
    const V distance = abs(difference);
    const V beta = splat<V>(beta_), half = splat<V>(0.5);
    const auto far = distance >= beta;
    const V ratio = difference / beta;
    const V slope = select(far, select(difference < splat<V>(0), splat<V>(-1), splat<V>(1)), ratio);
    return {select(far, distance - half * beta, half * difference * ratio), {slope, -slope}};
  }

 private:
  double beta_;
};

// With d = x - t: d^2 / 2 below |d| = delta, delta (|d| - delta / 2) from there on.
struct Huber : PointwiseFormula {
  static constexpr int kParameters = 1;
  FUSED_LOSSES_HOST_DEVICE explicit Huber(const double* parameters)
      : PointwiseFormula(parameters), delta_(parameters[0]) {}

  template <class V>
  FUSED_LOSSES_HOST_DEVICE Terms<V, 2> terms(V x, V t) const {
    const V difference = x - t;
    const V distance = abs(difference);
    const V delta = splat<V>(delta_), half = splat<V>(0.5);
    const auto far = distance >= delta;
    const V slope = select(far, select(difference < splat<V>(0), -delta, delta), difference);
    return {select(far, delta * (distance - half * delta), half * difference * difference), {slope, -slope}};
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

// Every pointwise loss: its value and its derivatives, and nothing else. No loop, pointer or thread here;
// V is a float, a double, or a vector of either, and the same text is compiled for CPU and CUDA.
//
// A formula is a struct with
//   kNeedsDomain  whether in_domain(x) must hold for every input (torch raises otherwise)
//   kMeanOverWeight  whether reduction="mean" divides by the sum of the weights instead of the count
//   a constructor from the loss's parameters, in the order of the registry
//   terms(x, t) or terms(x, t, extra): value and derivatives with respect to the arguments, in order
// Element weights, ignored elements, reductions and upstream gradients belong to the engines.
#pragma once

#include "math.h"

namespace fused_losses {

// A parameter such as pos_weight, for which torch has no gradient, has no derivative here either.
template <class V, int kDerivatives>
struct Terms {
  V value;
  V derivative[kDerivatives];
};

struct PointwiseFormula {
  static constexpr bool kNeedsDomain = false;
  static constexpr bool kMeanOverWeight = false;
  FUSED_LOSSES_HOST_DEVICE explicit PointwiseFormula(const double*) {}
};

// |x - t|; the derivative is 0 at a tie, and, as torch's sign, at NaN.
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

// -t log(x) - (1 - t) log(1 - x), with the logarithms held above -100 and the slope's denominator above
// 1e-12, as torch does, so that x = 0 and x = 1 give finite losses and gradients.
struct BinaryCrossEntropy : PointwiseFormula {
  static constexpr bool kNeedsDomain = true;
  using PointwiseFormula::PointwiseFormula;

  template <class V>
  FUSED_LOSSES_HOST_DEVICE static auto in_domain(V x) {
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
    const V smallest = splat<V>(1e-12);
    return {value, {(x - t) / select(variance < smallest, smallest, variance), log_rest - log_x}};
  }
};

// With sigmoid s, softplus p(x) = log(1 + e^x) and pos_weight w (1 where there is none):
//   (1 - t) x + (1 + (w - 1) t) p(-x),   d/dx = (1 - t) s(x) - w t s(-x),   d/dt = w p(-x) - p(x).
// All from one exponential of -|x|, which never overflows.
struct BinaryCrossEntropyWithLogits : PointwiseFormula {
  using PointwiseFormula::PointwiseFormula;

  template <class V>
  FUSED_LOSSES_HOST_DEVICE Terms<V, 2> terms(V x, V t) const {
    const Parts<V> parts(x);
    const V one = splat<V>(1);
    return {(one - t) * x + parts.softplus_of_minus, {(one - t) * parts.sigmoid - t * parts.sigmoid_of_minus, -x}};
  }

  template <class V>
  FUSED_LOSSES_HOST_DEVICE Terms<V, 2> terms(V x, V t, V w) const {
    const Parts<V> parts(x);
    const V one = splat<V>(1);
    const V rest = one - t;
    return {rest * x + (one + (w - one) * t) * parts.softplus_of_minus,
            {rest * parts.sigmoid - w * t * parts.sigmoid_of_minus, (w - one) * parts.softplus_of_minus - x}};
  }

 private:
  template <class V>
  struct Parts {
    V softplus_of_minus, sigmoid, sigmoid_of_minus;

    FUSED_LOSSES_HOST_DEVICE explicit Parts(V x) {
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
};

// The operator's name and its formula: the list that engines instantiate and that registration walks.
#define FUSED_LOSSES_POINTWISE(X)             \
  X(l1_loss, L1)                              \
  X(mse_loss, MSE)                            \
  X(binary_cross_entropy, BinaryCrossEntropy) \
  X(binary_cross_entropy_with_logits, BinaryCrossEntropyWithLogits)

}  // namespace fused_losses

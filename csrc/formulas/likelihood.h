// Negative log-likelihoods and divergences of distributions that are given by their parameters.
#pragma once

#include "pointwise.h"

namespace fused_losses {

// e^x - t x for the logarithm x of the rate, or x - t log(x + eps) for the rate itself. `full` adds Stirling's
// approximation of log t!, t log t - t + log(2 pi t) / 2, for t > 1.
struct PoissonNLL : PointwiseFormula {
  static constexpr int kFunctionsOf = kInput | kTarget;
  static constexpr bool kHasFlag = true;
  static constexpr int kParameters = 3;
  FUSED_LOSSES_HOST_DEVICE explicit PoissonNLL(const double* parameters)
      : PointwiseFormula(parameters), log_input_(parameters[0] != 0), full_(parameters[1] != 0), eps_(parameters[2]) {}

  FUSED_LOSSES_HOST_DEVICE bool flag() const { return log_input_; }
  FUSED_LOSSES_HOST_DEVICE void set_flag(bool flag) { log_input_ = flag; }

  template <class V>
  FUSED_LOSSES_HOST_DEVICE Terms<V, 2> terms(V x, V t) const {
    Terms<V, 2> result;
    if (log_input_) {
      const V rate = exp(x);
      result = {multiply_add(-t, x, rate), {rate - t, -x}};
    } else {
      const V rate = x + splat<V>(eps_);
      const V log_rate = log(rate);
      result = {multiply_add(-t, log_rate, x), {splat<V>(1) - divide(t, rate), -log_rate}};
    }
    if (full_) {
      constexpr double kHalfLogTwoPi = 0.91893853320467274;
      const V log_t = log(t), half = splat<V>(0.5), one = splat<V>(1);
      const auto counts = t > one;
      const V stirling = multiply_add(t, log_t, -t) + multiply_add(half, log_t, splat<V>(kHalfLogTwoPi));
      result.value += select(counts, stirling, splat<V>(0));
      // 0 times an infinite target, and for t <= 0 an infinite logarithm, is NaN: torch's derivative.
      const V zero = splat<V>(0);
      result.derivative[1] += select(counts, log_t + divide(half, t), zero) + zero * select(counts, t, log_t);
    }
    return result;
  }

 private:
  bool log_input_, full_;
  double eps_;
};

// (log v + (x - t)^2 / v) / 2 for v = max(var, eps); `full` adds log(2 pi) / 2. As in torch, the derivative with
// respect to var is that with respect to v, also where var is below eps.
struct GaussianNLL : PointwiseFormula {
  static constexpr int kFunctionsOf = kExtra;
  static constexpr bool kHasFlag = true;
  static constexpr int kParameters = 2;
  static constexpr int kOperands = 3;
  static constexpr int kDerivatives = 3;
  static constexpr int kPair = kInput | kExtra;
  static constexpr int kConditions = 1;
  using DomainError = std::invalid_argument;

  FUSED_LOSSES_HOST_DEVICE explicit GaussianNLL(const double* parameters)
      : PointwiseFormula(parameters),
        constant_(parameters[0] != 0 ? 0.91893853320467274 : 0),
        eps_(parameters[1]),
        is_normal_(eps_ >= std::numeric_limits<float>::min()) {}

  // Whether no variance is subnormal.
  FUSED_LOSSES_HOST_DEVICE bool flag() const { return is_normal_; }
  FUSED_LOSSES_HOST_DEVICE void set_flag(bool flag) { is_normal_ = flag; }

  FUSED_LOSSES_HOST_DEVICE static constexpr const char* refusal(int) { return "var has negative entry/entries"; }

  // NaN is not refused: torch asks whether any element is below 0.
  template <class V>
  FUSED_LOSSES_HOST_DEVICE static auto holds(int, V, V, V var) {
    return negation(var < splat<V>(0));
  }

  template <class V>
  FUSED_LOSSES_HOST_DEVICE Terms<V, 3> terms(V x, V t, V var) const {
    const V eps = splat<V>(eps_), half = splat<V>(0.5);
    const V v = select(var < eps, eps, var);
    const V difference = x - t;
    const V precision = divide(splat<V>(1), v);
    const V slope = difference * precision;
    const V log_v = is_normal_ ? log_of_normal(v) : log(v);
    const V value = multiply_add(half, multiply_add(difference, slope, log_v), splat<V>(constant_));
    return {value, {slope, -slope, multiply_add(-slope, slope, precision)}};
  }

  template <class V>
  FUSED_LOSSES_HOST_DEVICE static V scaled(int k, V derivative, V scale, V, V, V) {
    return derivative * (k == 2 ? splat<V>(0.5) * scale : scale);
  }

 private:
  double constant_;  // log(2 pi) / 2, or 0
  double eps_;
  bool is_normal_;
};

// t (log t - x), or e^t (t - x) where the target is a logarithm.
struct KLDiv : PointwiseFormula {
  static constexpr int kFunctionsOf = kTarget;
  static constexpr bool kHasFlag = true;
  static constexpr int kParameters = 1;
  FUSED_LOSSES_HOST_DEVICE explicit KLDiv(const double* parameters)
      : PointwiseFormula(parameters), log_target_(parameters[0] != 0) {}

  FUSED_LOSSES_HOST_DEVICE bool flag() const { return log_target_; }
  FUSED_LOSSES_HOST_DEVICE void set_flag(bool flag) { log_target_ = flag; }

  template <class V>
  FUSED_LOSSES_HOST_DEVICE Terms<V, 2> terms(V x, V t) const {
    if (log_target_) {
      const V p = exp(t);
      const V log_ratio = t - x;
      return {p * log_ratio, {-p, multiply_add(p, log_ratio, p)}};
    }
    const V zero = splat<V>(0);
    const V log_t = log(t);
    const V entropy = select(t == zero, zero, t * log_t);
    // 0 times an infinite logarithm, at t = 0 or infinity, is NaN: torch's derivative there.
    return {multiply_add(-t, x, entropy), {-t, (log_t - x) + multiply_add(zero, log_t, splat<V>(1))}};
  }

  // Torch does not ask for log t where the upstream gradient is 0, so the derivative of a negative target, which is NaN
  // otherwise, is 0 there.
  template <class V>
  FUSED_LOSSES_HOST_DEVICE V scaled(int k, V derivative, V scale, V x, V t) const {
    if (k == 0 || log_target_) return derivative * scale;
    const V zero = splat<V>(0);
    return scale * select((scale == zero) & (t < zero), x + t, derivative);
  }

 private:
  bool log_target_;
};

// The losses of this file: the operator's name and its formula.
#define FUSED_LOSSES_LIKELIHOOD(X)  \
  X(poisson_nll_loss, PoissonNLL)   \
  X(gaussian_nll_loss, GaussianNLL) \
  X(kl_div, KLDiv)

}  // namespace fused_losses

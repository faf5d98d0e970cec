// Binary cross-entropy of logits, times a power of how wrong the probability is: easy elements count less.
#pragma once

#include "binary.h"

namespace fused_losses {

// a / b for b from 0 to 1, where the quotient is near 1 if b is subnormal: it is 1 there.
FUSED_LOSSES_WORD T ratio_near_zero(T a, T b) {
  const T least = splat<T>(std::numeric_limits<float>::min());
  return select(b < least, splat<T>(1), divide_by_normal(a, select(b < least, splat<T>(1), b)));
}

// Whether a number may be the power of something from 0 to 1.
inline bool is_power(double gamma) { return gamma >= 0 && gamma < std::numeric_limits<double>::infinity(); }

// With p = sigmoid(x), q = 1 - p, cross-entropy c = -t log(p) - (1 - t) log(q), and u = t q + (1 - t) p, by how much
// the probability is wrong:
//   (1 - alpha + (2 alpha - 1) t) c u^gamma,
//   d/dx = (...) u^gamma ((p - t) + gamma c u' / u),   u' = p q (1 - 2 t).
// All of it is made of e^-|x|, of the class that x speaks for, `likely`, and of the other one's share of the target, so
// that nothing cancels at t = 0 and 1. For gamma < 1, u^(gamma - 1) grows beyond bounds; u^gamma u' / u does not.
struct SigmoidFocal : PointwiseFormula {
  static constexpr int kFunctionsOf = kInput;
  static constexpr bool kIgnores = true;
  static constexpr int kDerivatives = 1;
  static constexpr int kParameters = 2;
  static const char* expected(const double* parameters) {
    return is_power(parameters[1]) ? nullptr : "hold a gamma, the second, that is finite and not below 0";
  }
  FUSED_LOSSES_HOST_DEVICE explicit SigmoidFocal(const double* parameters)
      : PointwiseFormula(parameters),
        negative_(parameters[0] < 0 ? 1 : 1 - parameters[0]),
        step_(parameters[0] < 0 ? 0 : 2 * parameters[0] - 1),
        gamma_(parameters[1]),
        power_(gamma_ < 1 ? gamma_ : gamma_ - 1),
        factors_(power_ <= 2 && power_ == static_cast<int>(power_) ? static_cast<int>(power_) : kNoProduct) {}

  template <class V>
  FUSED_LOSSES_HOST_DEVICE Terms<V, 1> terms(V x, V t) const {
    const Sigmoid<V> parts(x);
    const V zero = splat<V>(0), rest = splat<V>(1) - t;
    const V likely = select(parts.positive, t, rest), other = select(parts.positive, rest, t);
    const V excess = parts.excess();
    // Of an infinite logit, 0 times it is nothing.
    const V loss = select(other == zero, excess, multiply_add(other, abs(x), excess));
    const V wrong = multiply_add(likely, parts.smaller, other * parts.larger);
    const V relative = multiply_add(likely, parts.e, other);  // to the larger sigmoid
    V power;                                                  // u^gamma for gamma < 1, else u^(gamma - 1)
    if (factors_ == kNoProduct) {
      // Near 1, the softplus knows more of the larger sigmoid than that itself.
      const V exponent = splat<V>(power_);
      power = pow_of_unit(relative, exponent) * exp_below_88(-exponent * excess);
    } else {
      power = factors_ == 0 ? splat<V>(1) : factors_ == 1 ? wrong : wrong * wrong;
    }
    V focus, turn;  // u^gamma, and u^(gamma - 1) p q, both over that power
    if (gamma_ < 1) {
      focus = splat<V>(1);
      turn = parts.larger * ratio_near_zero(parts.e, relative);
    } else {
      focus = wrong;
      turn = parts.larger * parts.smaller;
    }
    // Where a loss is larger than this, u' is 0, of which infinity would make NaN.
    const V most = splat<V>(1e30), held = select(loss < most, loss, most);
    const V of_size = multiply_add(focus, other - parts.smaller, splat<V>(gamma_) * held * (turn * (other - likely)));
    const V scale = multiply_add(t, splat<V>(step_), splat<V>(negative_)) * power;
    return {scale * (focus * loss), {scale * select(parts.positive, of_size, -of_size)}};
  }

 private:
  static constexpr int kNoProduct = -1;
  double negative_, step_, gamma_, power_;
  int factors_;  // how many factors of u the power is the product of
};

// With p = sigmoid(x), q = 1 - p, n = min(q + clip, 1), and logarithms held at log(eps) from below:
//   c = -t log(p) - (1 - t) log(n),   u = t q + (1 - t) (1 - n),   g = gamma_pos t + gamma_neg (1 - t),
//   c u^g,   d/dx = u^g (c' + g c u' / u).
struct Asymmetric : PointwiseFormula {
  static constexpr int kFunctionsOf = kInput;
  static constexpr bool kIgnores = true;
  static constexpr int kDerivatives = 1;
  static constexpr int kParameters = 4;
  static const char* expected(const double* parameters) {
    return is_power(parameters[0]) && is_power(parameters[1])
               ? nullptr
               : "hold gammas, the first two, that are finite and not below 0";
  }
  FUSED_LOSSES_HOST_DEVICE explicit Asymmetric(const double* parameters)
      : PointwiseFormula(parameters),
        gamma_neg_(parameters[0]),
        gamma_pos_(parameters[1]),
        clip_(parameters[2]),
        most_(-std::log(parameters[3])) {}

  template <class V>
  FUSED_LOSSES_HOST_DEVICE Terms<V, 1> terms(V x, V t) const {
    const Sigmoid<V> parts(x);
    const V zero = splat<V>(0), one = splat<V>(1), most = splat<V>(most_);
    const V p = parts.sigmoid(), q = parts.sigmoid_of_minus(), variance = parts.larger * parts.smaller;
    const V rest = one - t;
    const V of_positive = parts.softplus_of_minus();
    // What is left of the probability, the loss of a negative, its slope, and how the former's slope is clipped.
    V left = p, of_negative, slope_of_negative = p, counts = one;
    if (clip_ > 0) {
      const V above = p - splat<V>(clip_), kept = q + splat<V>(clip_);
      left = select(above < zero, zero, above);
      counts = select(above < zero, zero, one);
      // The logarithm is taken of the one that is not rounded.
      of_negative = -select(parts.positive, log_of_normal(select(kept > one, one, kept)), log_of_complement(left));
      slope_of_negative = counts * divide_by_normal(variance, kept);
    } else {
      of_negative = parts.excess() + select(parts.positive, x, zero);
    }
    const V slope_of_positive = select(of_positive > most, zero, -q);
    slope_of_negative = select(of_negative > most, zero, slope_of_negative);
    const V loss = multiply_add(t, select(of_positive > most, most, of_positive),
                                rest * select(of_negative > most, most, of_negative));
    const V slope = multiply_add(t, slope_of_positive, rest * slope_of_negative);
    const V wrong = multiply_add(t, q, rest * left);
    const V gamma = multiply_add(t, splat<V>(gamma_pos_), rest * splat<V>(gamma_neg_));
    const V focus = pow_of_unit(wrong, gamma);
    const V turn = variance * multiply_add(rest, counts, -t);
    return {loss * focus, {focus * multiply_add(gamma * ratio_near_zero(loss, wrong), turn, slope)}};
  }

 private:
  double gamma_neg_, gamma_pos_, clip_, most_;
};

// The losses of this file: the operator's name and its formula.
#define FUSED_LOSSES_FOCAL(X)         \
  X(sigmoid_focal_loss, SigmoidFocal) \
  X(asymmetric_loss, Asymmetric)

}  // namespace fused_losses

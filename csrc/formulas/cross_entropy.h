// Softmax cross-entropy over a row of logits x, as one formula for labels, label smoothing and probabilities. A row's
// target is `hot` at class y (0 where there is no such class) plus soft targets q_c for all classes c:
//
//   label y                  hot = w_y                  q = 0
//   ... smoothed by e        hot = (1 - e) w_y          q_c = e / C w_c
//   probabilities t          hot = 0                    q_c = ((1 - e) t_c + e / C) w_c
//
// With s = sum exp(x - m) for an m near max x, Q = sum q and X = sum q (x - m):
//   loss = hot ((m - x_y) + log s) + Q log s - X
//   dloss/dx_c = (hot + Q) exp(x_c - m) / s - hot [c = y] - q_c
//   dloss/dt_c = (1 - e) w_c ((m - x_c) + log s)
// The loss is computed as (m - x) + log s, not as lse - x: for large logits, lse = m + log s rounds log s away.
//
// Rows may have more terms (SoftmaxTerms). With lse = m + log s, the excess U = sum exp(x - m) (x - m), whose mean over
// the softmax is U / s, p = exp(x - m) / s, and the entropy H = log s - U / s of p:
//   loss += z lse^2 - b H
//   dloss/dx_c += p_c (2 z lse + b ((x_c - m) - U / s))
// The logits x may be made of others, v: x = cap tanh(scale v / cap), or scale v without a cap. Then
//   dloss/dv_c = dloss/dx_c scale (1 - (x_c / cap)^2)
#pragma once

#include "math.h"
#include "softmax_terms.h"

namespace fused_losses {

// How far a reference may be below the largest logit: e^16 (9e6) times a million classes is 9e12, far from the largest
// float32, 3e38.
inline constexpr double kHeadroom = 16;

// What is known of a part of a row. Parts are merged. The reference m need not be the largest x, only not so far below
// it that an exponential overflows: not looking for the largest first saves a pass.
template <class R>
struct SoftmaxState {
  R reference = -INFINITY;  // m: at most kHeadroom below the largest x of the part
  R sum = 0;                // of exp(x - m)
  R mass = 0;               // Q
  R cross = 0;              // X
  R excess = 0;             // U; not computed where there is no entropy

  // Makes the same sums relative to a larger reference.
  FUSED_LOSSES_HOST_DEVICE void raise(R larger) {
    if (!(larger > reference)) return;
    const R step = reference - larger;
    if (sum != 0) {
      const R shrunk = std::exp(step);
      excess = shrunk != 0 ? (excess + sum * step) * shrunk : R(0);
      sum *= shrunk;
    }
    if (mass != 0) cross += mass * step;
    reference = larger;
  }

  FUSED_LOSSES_HOST_DEVICE void merge(SoftmaxState other) {
    raise(other.reference);
    other.raise(reference);
    sum += other.sum;
    mass += other.mass;
    cross += other.cross;
    excess += other.excess;
  }
};

// What a row's gradient is made of, given the state of the whole row: dloss/dx_c times `scale`, which is the upstream
// gradient over the reduction's divisor, is numerator_factor exp(x_c - m) + soft_factor q_c + [c = y] hot_term.
template <class R>
struct SoftmaxGradient {
  R numerator_factor;  // times exp(x_c - m)
  R hot_term;          // added at class y
  R soft_factor;       // times q_c

  FUSED_LOSSES_HOST_DEVICE SoftmaxGradient(R sum, R mass, R hot, R scale)
      : numerator_factor((hot + mass) * scale / sum), hot_term(-hot * scale), soft_factor(-scale) {}
};

// The loss of a row. A row of probabilities has no class y: has_hot is false, and hot and x_y are not used.
template <class R>
FUSED_LOSSES_HOST_DEVICE R cross_entropy_value(const SoftmaxState<R>& state, bool has_hot, R hot, R x_y) {
  const R log_sum = std::log(state.sum);
  R value = 0;
  if (has_hot) value = hot * ((state.reference - x_y) + log_sum);
  if (state.mass != 0 || state.cross != 0) value += state.mass * log_sum - state.cross;
  return value;
}

// The gradient at class y, where hot (p_y - 1) would lose most of its bits if p_y is nearly 1. It is minus hot times
// the share of all other classes, whose exponentials add up to `others`; e_y is the exponential of class y.
template <class R>
FUSED_LOSSES_HOST_DEVICE R gradient_at_hot(R e_y, R others, R sum, R hot, R mass, R q_y) {
  return mass * divide_by_normal(e_y, sum) - q_y - hot * divide_by_normal(others, sum);
}

// From given logits v to the logits of the softmax, x = value(v), and dx/dv as slope(x). Its own numbers are of type R.
template <class R>
class LogitMap {
 public:
  FUSED_LOSSES_HOST_DEVICE explicit LogitMap(const SoftmaxTerms& terms)
      : scale_(static_cast<R>(terms.logit_scale)),
        cap_(static_cast<R>(terms.softcap)),
        inner_(static_cast<R>(terms.softcap == 0 ? terms.logit_scale : terms.logit_scale / terms.softcap)) {}

  template <class V>
  FUSED_LOSSES_HOST_DEVICE V value(V v) const {
    v = v * splat<V>(inner_);
    if (cap_ == 0) return v;
    return tanh(v) * splat<V>(cap_);
  }

  template <class V>
  FUSED_LOSSES_HOST_DEVICE V slope(V x) const {
    if (cap_ == 0) return splat<V>(scale_);
    const V ratio = x / splat<V>(cap_);  // exactly 1 where x is the cap
    return (splat<V>(1) - ratio * ratio) * splat<V>(scale_);
  }

 private:
  R scale_, cap_, inner_;
};

// The log-sum-exp of a row, and below, its entropy.
template <class R>
FUSED_LOSSES_HOST_DEVICE R lse_of(const SoftmaxState<R>& state) {
  return state.reference + std::log(state.sum);
}
template <class R>
FUSED_LOSSES_HOST_DEVICE R entropy_of(const SoftmaxState<R>& state) {
  return std::log(state.sum) - state.excess / state.sum;
}

// What terms add to a row's loss.
template <class R>
FUSED_LOSSES_HOST_DEVICE R terms_value(const SoftmaxState<R>& state, R z_loss, R entropy) {
  R value = 0;
  if (z_loss != 0) value += z_loss * lse_of(state) * lse_of(state);
  if (entropy != 0) value -= entropy * entropy_of(state);
  return value;
}

// What terms add to a row's gradient: exp(x_c - m) (numerator_factor + excess_factor (x_c - m)). `scale` is as above;
// `lse_upstream` is the upstream gradient of the log-sum-exp as a result of its own.
template <class R>
struct SoftmaxTermsGradient {
  R numerator_factor = 0, excess_factor = 0;

  SoftmaxTermsGradient() = default;
  FUSED_LOSSES_HOST_DEVICE SoftmaxTermsGradient(const SoftmaxState<R>& state, R z_loss, R entropy, R scale,
                                                R lse_upstream)
      : numerator_factor((scale * (2 * z_loss * lse_of(state) - entropy * (state.excess / state.sum)) + lse_upstream) /
                         state.sum),
        excess_factor(scale * entropy / state.sum) {}
};

// The operator's name and the engine's function: what registration walks.
#define FUSED_LOSSES_SOFTMAX(X)   \
  X(cross_entropy, cross_entropy) \
  X(nll_loss, nll)

}  // namespace fused_losses

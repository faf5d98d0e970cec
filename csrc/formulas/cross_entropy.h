// Softmax cross-entropy over a row of logits x, as one formula for class indices, label smoothing and class
// probabilities. A row's target is `hot` at class y (0 where there is no such class) plus soft targets q:
//
//   class index y            hot = w_y                  q = 0
//   ... smoothed by e        hot = (1 - e) w_y          q_c = e / C w_c
//   probabilities t          hot = 0                    q_c = ((1 - e) t_c + e / C) w_c
//
// With s = sum exp(x - m) for an m near max x, Q = sum q and X = sum q (x - m):
//   loss = hot ((m - x_y) + log s) + Q log s - X
//   dloss/dx_c = (hot + Q) exp(x_c - m) / s - hot [c = y] - q_c
//   dloss/dt_c = (1 - e) w_c ((m - x_c) + log s)
// (m - x) + log s rather than lse - x: lse has no bits left for log s when logits are large.
#pragma once

#include "math.h"

namespace fused_losses {

// e^16 times a million classes is far from float's largest number.
inline constexpr double kHeadroom = 16;

// What is known of a part of a row; parts are merged. Any m will do that is not so far below the largest x that
// an exponential overflows: not looking for the largest itself saves a pass.
template <class R>
struct SoftmaxState {
  R max = -INFINITY;  // m: at most kHeadroom below the largest x of the part
  R sum = 0;          // of exp(x - m)
  R mass = 0;         // Q
  R cross = 0;        // X

  // The same sums, relative to a larger maximum.
  FUSED_LOSSES_HOST_DEVICE void raise(R larger) {
    if (!(larger > max)) return;
    const R step = max - larger;
    if (sum != 0) sum *= std::exp(step);
    if (mass != 0) cross += mass * step;
    max = larger;
  }

  FUSED_LOSSES_HOST_DEVICE void merge(SoftmaxState other) {
    raise(other.max);
    other.raise(max);
    sum += other.sum;
    mass += other.mass;
    cross += other.cross;
  }
};

// What a row's gradient is made of, given its maximum and sum; `scale` is the upstream gradient over the
// reduction's divisor.
template <class R>
struct SoftmaxGradient {
  R of_numerator;  // times exp(x_c - m)
  R of_hot;        // added at class y
  R of_soft;       // times q_c

  FUSED_LOSSES_HOST_DEVICE SoftmaxGradient(R sum, R mass, R hot, R scale)
      : of_numerator((hot + mass) * scale / sum), of_hot(-hot * scale), of_soft(-scale) {}
};

// x_y is read only where hot counts: a row of probabilities has no class y.
template <class R>
FUSED_LOSSES_HOST_DEVICE R cross_entropy_value(const SoftmaxState<R>& state, bool has_hot, R hot, R x_y) {
  const R log_sum = std::log(state.sum);
  R value = 0;
  if (has_hot) value = hot * ((state.max - x_y) + log_sum);
  if (state.mass != 0 || state.cross != 0) value += state.mass * log_sum - state.cross;
  return value;
}

// At class y, where p - 1 nearly cancels: minus the others' share, from the sum of all exponentials but e_y.
template <class R>
FUSED_LOSSES_HOST_DEVICE R gradient_at_hot(R e_y, R others, R sum, R hot, R mass, R q_y) {
  return mass * (e_y / sum) - q_y - hot * (others / sum);
}

// The operator's name and the engine's function: what registration walks.
#define FUSED_LOSSES_SOFTMAX(X)   \
  X(cross_entropy, cross_entropy) \
  X(nll_loss, nll)

}  // namespace fused_losses

"""Softmax cross-entropy over a row of logits x, for class indices, label smoothing and class probabilities.

A row's target is `hot` at class y (0 where there is no such class) plus soft targets q:

    class index y            hot = w_y                  q = 0
    ... smoothed by e        hot = (1 - e) w_y          q_c = e / C w_c
    probabilities t          hot = 0                    q_c = ((1 - e) t_c + e / C) w_c

With m the largest x, s = sum exp(x - m), Q = sum q and X = sum q (x - m):

    loss = hot ((m - x_y) + log s) + Q log s - X
    dloss/dx_c = (hot + Q) exp(x_c - m) / s - hot [c = y] - q_c
    dloss/dt_c = (1 - e) w_c ((m - x_c) + log s)

(m - x) + log s rather than lse - x: lse has no bits left for log s when logits are large.
"""

import triton
import triton.language as tl

from fused_losses.triton_kernels.formulas.math import splat


@triton.jit
def soft_target(t, w, smoothing, classes, x, PROBABILITIES: tl.constexpr):
    """Soft targets q of some classes, from probabilities t and weights w, either of which may be None."""
    q = splat(smoothing / classes, x)
    if PROBABILITIES:
        q += t * splat(1 - smoothing, x)
    if w is not None:
        q *= w
    return q


@triton.jit
def value_of_row(m, s, hot, x_y, mass, cross, HOT: tl.constexpr, SOFT: tl.constexpr):
    """The loss; x_y counts only where there are hot classes, mass and cross where there are soft."""
    log_s = tl.log(s)
    value = log_s * 0
    if HOT:
        value += hot * ((m - x_y) + log_s)
    if SOFT:
        value += mass * log_s - cross
    return value


@triton.jit
def gradient_at_hot(e_y, others, s, hot, mass, q_y, SOFT: tl.constexpr):
    """At class y, where p - 1 nearly cancels: minus the others' share, from the sum of all but e_y."""
    slope = -hot * (others / s)
    if SOFT:
        slope += mass * (e_y / s) - q_y
    return slope

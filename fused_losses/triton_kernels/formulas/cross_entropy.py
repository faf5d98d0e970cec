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

Rows may have more terms, with factors z and b. With p = exp(x - m) / s, lse = m + log s, and A = sum p (x -
m), the entropy of p is log s - A:

    loss += z lse^2 - b (log s - A)
    dloss/dx_c += p_c (2 z lse + b ((x_c - m) - A))

x is made of the logits v that the user gives: x = scale v, or cap tanh(scale v / cap), so that

    dloss/dv_c = dloss/dx_c scale (1 - (x_c / cap)^2)

Numbers of rows have the shape (ROWS), numbers of their classes (ROWS, CHUNK); all are float32 or all float64.
"""

import triton
import triton.language as tl

from fused_losses.triton_kernels.formulas.math import splat, tanh


@triton.jit
def soft_target(t, w, smoothing, classes, x, PROBABILITIES: tl.constexpr):
    """Soft targets q, (ROWS, CHUNK), from probabilities t, if there are PROBABILITIES, and weights w.

    w is (CHUNK) or None; x is any block of the result's shape.
    """
    q = splat(smoothing / classes, x)
    if PROBABILITIES:
        q += t * splat(1 - smoothing, x)
    if w is not None:
        q *= w[None, :]
    return q


@triton.jit
def row_value(m, s, hot, x_y, mass, cross, HOT: tl.constexpr, SOFT: tl.constexpr):
    """The loss, from m, s, x_y, Q (mass) and X (cross).

    x_y is read only if there are HOT targets, Q and X if there are SOFT ones.
    """
    log_s = tl.log(s)
    value = log_s * 0
    if HOT:
        value += hot * ((m - x_y) + log_s)
    if SOFT:
        value += mass * log_s - cross
    return value


@triton.jit
def gradient_at_hot(e_y, others, s, hot, mass, q_y, SOFT: tl.constexpr):
    """dloss/dx_y, where p - 1 nearly cancels: minus the other classes' share of s.

    `others` is the sum of all exponentials but e_y = exp(x_y - m).
    """
    slope = -hot * (others / s)
    if SOFT:
        slope += mass * (e_y / s) - q_y
    return slope


@triton.jit
def scaled_logit(v, scale, cap):
    """x, from logits v; without a cap if that is None."""
    if cap is None:
        return v * splat(scale, v)
    else:
        return tanh(v * splat(scale / cap, v)) * splat(cap, v)


@triton.jit
def slope_of_logit(x, scale, cap):
    """dx/dv, from x."""
    if cap is None:
        return splat(scale, x)
    else:
        ratio = x / splat(cap, x)  # exactly 1 where x is the cap
        return (1 - ratio * ratio) * splat(scale, x)


@triton.jit
def excess(e, relative):
    """exp(x - m) (x - m), 0 where x is -inf; the sum over s is A, the mean excess of logits over m."""
    return tl.where(e != 0, e * relative, 0.0)


@triton.jit
def terms_value(m, s, mean_excess, z_loss, entropy, ENTROPY: tl.constexpr):
    """What the terms add to the loss; A, `mean_excess`, counts only if there is an ENTROPY."""
    log_s = tl.log(s)
    lse = m + log_s
    z = splat(z_loss, m)
    # Without the term, 0 times the square of large logits, which is infinite, would be NaN.
    value = tl.where(z != 0, z * lse * lse, 0.0)
    if ENTROPY:
        value -= splat(entropy, m) * (log_s - mean_excess)
    return value


@triton.jit
def terms_slope(m, s, mean_excess, z_loss, entropy, ENTROPY: tl.constexpr):
    """What the terms add to dloss/dx, divided by p, but for b (x - m), which differs between classes."""
    slope = splat(2 * z_loss, m) * (m + tl.log(s))
    if ENTROPY:
        slope -= splat(entropy, m) * mean_excess
    return slope

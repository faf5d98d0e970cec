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

Numbers of rows have the shape (ROWS), numbers of their classes are blocks as in `class_blocks.py`; all are
float32 or all float64.
"""

import triton
import triton.language as tl

from fused_losses.triton_kernels.formulas.math import (
    LOG2_E,
    exp2_of_rounded,
    exp_of_rounded,
    reciprocal,
    splat,
    tanh,
)


@triton.jit
def soft_target(t, w, smoothing, classes, x, PROBABILITIES: tl.constexpr):
    """A block of soft targets q, from probabilities t, if there are PROBABILITIES, and weights w.

    w is a block of a single row, or None; x is any block of the result's shape.
    """
    q = splat(smoothing / classes, x)
    if PROBABILITIES:
        q += t * splat(1 - smoothing, x)
    if w is not None:
        q *= w
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
def scaled_logit(v, scale, cap, ROUNDED: tl.constexpr):
    """x, from logits v; without a cap if that is None."""
    if cap is None:
        return v * splat(scale, v)
    elif ROUNDED:
        # cap (1 - 2 / (1 + e^2u)) for u = scale v / cap, which is cap or -cap where e^2u is infinite or 0.
        power = exp2_of_rounded(v * splat(2 * LOG2_E * (scale / cap), v))
        return tl.fma(reciprocal(1 + power, True), splat(-2 * cap, v), splat(cap, v))
    else:
        return tanh(v * splat(scale / cap, v)) * splat(cap, v)


@triton.jit
def slope_of_logits(scale, cap, ROUNDED: tl.constexpr):
    """The part of dx/dv that all logits share, a scalar: dx/dv without `slope_of_logit`."""
    if ROUNDED and cap is not None:
        return scale / (cap * cap)
    else:
        return scale


@triton.jit
def slope_of_logit(x, cap, ROUNDED: tl.constexpr):
    """The part of dx/dv that depends on x, where there is a cap: 0 where x is the cap."""
    if ROUNDED:
        return (splat(cap, x) - x) * (splat(cap, x) + x)
    else:
        ratio = x / splat(cap, x)  # exactly 1 where x is the cap
        return 1 - ratio * ratio


@triton.jit
def power_of(m, ROUNDED: tl.constexpr):
    """What `exponents` of a row are made with, from m: a factor and an offset; and the unit.

    If gradients are ROUNDED to 16 bits, numerators are 2^(factor x + offset), a single multiply-add. The
    factor is log2(e), and the offset is rounded, so they are e^(x - m) times a unit that differs a little
    from 1. Where m is large, the factor is 1, and offset and unit are exact: neighbours of 8 bits, the
    significand of bfloat16, are 2^12 apart there, and 2 and e to the power of minus that are both 0.
    """
    if ROUNDED:
        factor = tl.where(tl.abs(m) < 2.0**20, LOG2_E, 1.0)
        offset = -(m * factor)
        return factor, offset, exp2_of_rounded(tl.fma(m, factor, offset))
    else:
        one = tl.full(m.shape, 1, m.dtype)
        return one, -m, one


@triton.jit
def exponents(x, factor, offset, ROUNDED: tl.constexpr):
    """The exponents t of numerators, from what `power_of` returns, in shapes that broadcast to x."""
    return tl.fma(x, factor, offset) if ROUNDED else x + offset


@triton.jit
def numerators(t, ROUNDED: tl.constexpr):
    """exp(x - m) times the unit, from exponents t."""
    return exp2_of_rounded(t) if ROUNDED else exp_of_rounded(t, False)


@triton.jit
def cross_of_exponents(sum_of_t, mass, m, factor, offset, ROUNDED: tl.constexpr):
    """X, from the sum of q t and the sum Q of q."""
    if ROUNDED:
        return (sum_of_t - mass * tl.fma(m, factor, offset)) / factor
    else:
        return sum_of_t


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

"""Binary cross-entropy and its relatives: losses of the sigmoid of each element."""

import triton
import triton.language as tl

from fused_losses.triton_kernels.formulas.math import (
    exp,
    log1p,
    log1p_of_unit,
    log_of_unit,
    maximum,
    reciprocal,
    splat,
)
from fused_losses.triton_kernels.formulas.pointwise import Formula


@triton.jit
def sigmoid(x, ROUNDED: tl.constexpr):
    """e^-|x|, which never overflows, and what follows from it: the sigmoid of |x|, and log(1 + e^-|x|).

    The sigmoid of -|x| is the product of the first two.
    """
    e = exp(-tl.abs(x), ROUNDED[0])
    return e, reciprocal(1 + e, ROUNDED[1]), log1p_of_unit(e, ROUNDED[0])


@triton.jit
def smoothed(t, smoothing):
    """Targets of which that share, a float64 scalar, is spread evenly over both classes; and their slope."""
    slope = splat(1 - smoothing, t)
    return tl.fma(t, slope, splat(smoothing * 0.5, t)), slope


@triton.jit
def are_probabilities(x, t, third):
    """Whether input and target are between 0 and 1."""
    # The input by its variance, which the slope needs, too.
    return ((1 - x) * x >= 0) & (t >= 0) & (t <= 1)


@triton.jit
def binary_cross_entropy(x, t, third, numbers, FLAGS: tl.constexpr, ROUNDED: tl.constexpr):
    """-t log(x) - (1 - t) log(1 - x), finite at 0 and 1; the number is the label smoothing of t.

    As in torch, the logarithms are held above -100, the slope's denominator above 1e-12.
    """
    t, keep = smoothed(t, numbers[0])
    log_x = log_of_unit(x, ROUNDED[0])
    log_rest = log1p(-x, ROUNDED[0])
    held_x, held_rest = maximum(log_x, -100.0), maximum(log_rest, -100.0)
    value = tl.fma(t - 1, held_rest, -t * held_x)
    if ROUNDED[0]:
        # Shorter, and exact enough: where t is 1, the larger logarithm cancels but for its rounding.
        value = -tl.fma(t, held_x - held_rest, held_rest)
    # torch rounds this constant to float32, even for inputs of float64.
    variance = maximum((1 - x) * x, tl.full((), 1e-12, tl.float32).to(x.dtype))
    slope = (x - t) * reciprocal(variance, ROUNDED[1])
    if ROUNDED[0]:
        # Where log1p is too large beside the logarithm of the sum, the other logarithm outweighs both.
        log_rest = log_of_unit(1 - x, ROUNDED[0])
    return value, (slope, (log_rest - tl.where(x == 0, float("-inf"), log_x)) * keep)


@triton.jit
def binary_cross_entropy_with_logits(x, t, pos_weight, numbers, FLAGS: tl.constexpr, ROUNDED: tl.constexpr):
    """For logits x, sigmoid s, softplus p(x) = log(1 + e^x) and pos_weight w (1 where there is none).

    The value is (1 - t) x + (1 + (w - 1) t) p(-x); d/dx = (1 - t) s(x) - w t s(-x), d/dt = w p(-x) - p(x).
    Without w, d/dx is s(x) - t. For a positive x, it is (1 - t) - s(-x), of which nothing cancels at t = 1.
    The number is the label smoothing of t.
    """
    t, keep = smoothed(t, numbers[0])
    e, larger, excess = sigmoid(x, ROUNDED)
    positive = x >= 0
    minus = maximum(-x, 0.0)
    rest = 1 - t
    if pos_weight is None:
        # First what cancels where t is 0, which leaves a small excess whole.
        value = tl.fma(rest, x, minus) + excess
        slope = tl.fma(-e, larger, tl.where(positive, rest, t))
        slope = tl.where(positive, slope, -slope)
        d_target = -x
    else:
        softplus_of_minus = minus + excess
        value = tl.fma(rest, x, tl.fma(pos_weight - 1, t, 1.0) * softplus_of_minus)
        minus_positives = -pos_weight * t
        own, other = tl.where(positive, rest, minus_positives), tl.where(positive, minus_positives, rest)
        slope = tl.fma(e, other, own) * larger
        # Where w t is infinite, torch subtracts it from itself: 0 times it is NaN, too, else nothing.
        slope = tl.fma(minus_positives, 0.0, slope)
        # w p(-x) - p(x), which for a positive x is summed up in the order in which nothing cancels.
        d_target = tl.where(positive, (pos_weight - 1) * excess - x, pos_weight * softplus_of_minus - excess)
    return value, (slope, d_target * keep)


@triton.jit
def multilabel_soft_margin(x, t, third, numbers, FLAGS: tl.constexpr, ROUNDED: tl.constexpr):
    """Binary cross-entropy with logits, as t p(-x) + (1 - t) p(x) with p(x) = log(1 + e^x), times a number.

    That is 1 / C, for the mean over classes, where the losses of rows are not averaged; else 1.
    """
    share = splat(numbers[0], x)
    e, larger, excess = sigmoid(x, ROUNDED)
    positive = x >= 0
    rest = 1 - t
    value = tl.where(positive, rest, t) * tl.abs(x) + excess
    # Where t is infinite, torch subtracts it from itself.
    value = tl.fma(t, 0.0, value)
    own, other = tl.where(positive, rest, -t), tl.where(positive, -t, rest)
    slope = tl.fma(e, other, own) * larger
    return share * value, (share * slope, share * -x)


@triton.jit
def soft_margin(x, t, third, numbers, FLAGS: tl.constexpr, ROUNDED: tl.constexpr):
    """log(1 + e^(-t x)) for t = 1 or -1; differentiable with respect to x alone."""
    z = t * x
    e, larger, excess = sigmoid(z, ROUNDED)
    slope = -t * larger * tl.where(z >= 0, e, 1.0)
    return maximum(-z, 0.0) + excess, (slope,)


FORMULAS = {
    "binary_cross_entropy": Formula(
        binary_cross_entropy,
        holds=are_probabilities,
        refusal="all elements of input should be between 0 and 1, "
        "all elements of target should be between 0 and 1",
    ),
    "binary_cross_entropy_with_logits": Formula(binary_cross_entropy_with_logits),
    "multilabel_soft_margin_loss": Formula(multilabel_soft_margin),
    "soft_margin_loss": Formula(soft_margin),
}

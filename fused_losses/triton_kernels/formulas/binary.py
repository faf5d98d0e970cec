"""Binary cross-entropy and its relatives: losses of the sigmoid of each element."""

import triton
import triton.language as tl

from fused_losses.triton_kernels.formulas.math import exp, log1p, splat
from fused_losses.triton_kernels.formulas.pointwise import Formula


@triton.jit
def sigmoid(x):
    """The sigmoids of |x| and -|x|, and log(1 + e^-|x|), from one exponential, which never overflows."""
    e = exp(-tl.abs(x))
    larger = 1 / (1 + e)
    return larger, e * larger, log1p(e)


@triton.jit
def is_probability(k, x, t, third):
    """Whether the input is between 0 and 1, or for k = 1 the target."""
    if k == 0:
        return (x >= 0) & (x <= 1)
    else:
        return (t >= 0) & (t <= 1)


@triton.jit
def binary_cross_entropy(x, t, third, numbers, FLAGS: tl.constexpr):
    """-t log(x) - (1 - t) log(1 - x), finite at 0 and 1.

    As in torch, the logarithms are held above -100, the slope's denominator above 1e-12.
    """
    log_x = tl.log(x)
    log_rest = log1p(-x)
    value = (t - 1) * tl.where(log_rest < -100, -100.0, log_rest) - t * tl.where(log_x < -100, -100.0, log_x)
    variance = (1 - x) * x
    # torch rounds this constant to float32, even for inputs of float64.
    smallest = tl.full(x.shape, 1e-12, tl.float32).to(x.dtype)
    slope = (x - t) / tl.where(variance < smallest, smallest, variance)
    return value, (slope, log_rest - log_x)


@triton.jit
def binary_cross_entropy_with_logits(x, t, pos_weight, numbers, FLAGS: tl.constexpr):
    """For logits x, sigmoid s, softplus p(x) = log(1 + e^x) and pos_weight w (1 where there is none).

    The value is (1 - t) x + (1 + (w - 1) t) p(-x); d/dx = (1 - t) s(x) - w t s(-x), d/dt = w p(-x) - p(x).
    Without w, d/dx is s(x) - t. For a positive x, it is (1 - t) - s(-x), of which nothing cancels at t = 1.
    """
    larger, smaller, excess = sigmoid(x)
    positive = x >= 0
    softplus_of_minus = excess + tl.where(positive, 0.0, -x)
    rest = 1 - t
    if pos_weight is None:
        value = rest * x + softplus_of_minus
        slope = tl.where(positive, rest - smaller, smaller - t)
        d_target = -x
    else:
        value = rest * x + (1 + (pos_weight - 1) * t) * softplus_of_minus
        positives = pos_weight * t
        slope = rest * tl.where(positive, larger, smaller) - positives * tl.where(positive, smaller, larger)
        # Where w t is infinite, torch subtracts it from itself: 0 times it is NaN, too, else nothing.
        slope += 0 * positives
        # w p(-x) - p(x), which for a positive x is summed up in the order in which nothing cancels.
        d_target = tl.where(positive, (pos_weight - 1) * excess - x, pos_weight * softplus_of_minus - excess)
    return value, (slope, d_target)


@triton.jit
def multilabel_soft_margin(x, t, third, numbers, FLAGS: tl.constexpr):
    """Binary cross-entropy with logits, as t p(-x) + (1 - t) p(x) with p(x) = log(1 + e^x), times a number.

    That is 1 / C, for the mean over classes, where the losses of rows are not averaged; else 1.
    """
    share = splat(numbers[0], x)
    larger, smaller, excess = sigmoid(x)
    positive = x >= 0
    rest = 1 - t
    value = t * (excess + tl.where(positive, 0.0, -x)) + rest * (excess + tl.where(positive, x, 0.0))
    slope = rest * tl.where(positive, larger, smaller) - t * tl.where(positive, smaller, larger)
    return share * value, (share * slope, share * -x)


@triton.jit
def soft_margin(x, t, third, numbers, FLAGS: tl.constexpr):
    """log(1 + e^(-t x)) for t = 1 or -1; differentiable with respect to x alone."""
    z = t * x
    larger, smaller, excess = sigmoid(z)
    positive = z >= 0
    slope = -t * tl.where(positive, smaller, larger)
    return excess + tl.where(positive, 0.0, -z), (slope,)


FORMULAS = {
    "binary_cross_entropy": Formula(
        binary_cross_entropy,
        holds=is_probability,
        refusals=(
            "all elements of input should be between 0 and 1",
            "all elements of target should be between 0 and 1",
        ),
    ),
    "binary_cross_entropy_with_logits": Formula(binary_cross_entropy_with_logits),
    "multilabel_soft_margin_loss": Formula(multilabel_soft_margin),
    "soft_margin_loss": Formula(soft_margin),
}

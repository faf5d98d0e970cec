"""Binary cross-entropy and its relatives: losses of the sigmoid of each element."""

import triton
import triton.language as tl

from fused_losses.triton_kernels.formulas.math import exp, log1p, splat
from fused_losses.triton_kernels.formulas.pointwise import Formula


@triton.jit
def sigmoid(x):
    """log(1 + e^-x) and the sigmoids of x and -x, from one exponential of -|x|, which never overflows."""
    e = exp(-tl.abs(x))
    positive = x >= 0
    larger = 1 / (1 + e)
    smaller = e * larger
    softplus_of_minus = log1p(e) + tl.where(positive, 0.0, -x)
    return softplus_of_minus, tl.where(positive, larger, smaller), tl.where(positive, smaller, larger)


@triton.jit
def is_probability(x, t, third):
    """Whether the input is one; targets are not looked at, as in torch."""
    return (x >= 0) & (x <= 1)


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
    """
    softplus_of_minus, s, s_of_minus = sigmoid(x)
    rest = 1 - t
    if pos_weight is None:
        value = rest * x + softplus_of_minus
        slope = rest * s - t * s_of_minus
        d_target = -x
    else:
        value = rest * x + (1 + (pos_weight - 1) * t) * softplus_of_minus
        slope = rest * s - pos_weight * t * s_of_minus
        d_target = (pos_weight - 1) * softplus_of_minus - x
    return value, (slope, d_target)


@triton.jit
def multilabel_soft_margin(x, t, third, numbers, FLAGS: tl.constexpr):
    """Binary cross-entropy with logits, times the loss's only number.

    That is 1 / C, for the mean over classes, where the losses of rows are not averaged; else 1.
    """
    share = splat(numbers[0], x)
    value, derivatives = binary_cross_entropy_with_logits(x, t, None, numbers, FLAGS)
    return share * value, (share * derivatives[0], share * derivatives[1])


@triton.jit
def soft_margin(x, t, third, numbers, FLAGS: tl.constexpr):
    """log(1 + e^(-t x)) for t = 1 or -1; differentiable with respect to x alone."""
    softplus_of_minus, _, s_of_minus = sigmoid(t * x)
    slope = -t * s_of_minus
    return softplus_of_minus, (slope,)


FORMULAS = {
    "binary_cross_entropy": Formula(
        binary_cross_entropy,
        in_domain=is_probability,
        outside="all elements of input should be between 0 and 1",
    ),
    "binary_cross_entropy_with_logits": Formula(binary_cross_entropy_with_logits),
    "multilabel_soft_margin_loss": Formula(multilabel_soft_margin),
    "soft_margin_loss": Formula(soft_margin),
}

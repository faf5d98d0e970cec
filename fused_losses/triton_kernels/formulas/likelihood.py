"""Negative log-likelihoods and divergences of distributions given by their parameters."""

import triton
import triton.language as tl

from fused_losses.triton_kernels.formulas.math import exp, log, maximum, splat
from fused_losses.triton_kernels.formulas.pointwise import Formula

HALF_LOG_TWO_PI = tl.constexpr(0.91893853320467274)
"""log(2 pi) / 2."""


@triton.jit
def poisson_nll(x, t, third, numbers, FLAGS: tl.constexpr, ROUNDED: tl.constexpr):
    """e^x - t x for the logarithm x of the rate, or x - t log(x + eps) for the rate itself.

    FLAGS are log_input and full, the number is eps; `full` adds Stirling's approximation of log t!,
    t log t - t + log(2 pi t) / 2, for t > 1.
    """
    if FLAGS[0]:
        rate = exp(x, ROUNDED[0])
        value = rate - t * x
        d_input = rate - t
        d_target = -x
    else:
        rate = x + splat(numbers[0], x)
        log_rate = log(rate, ROUNDED[0])
        value = x - t * log_rate
        d_input = 1 - t / rate
        d_target = -log_rate
    if FLAGS[1]:
        log_t = log(t, ROUNDED[0])
        counts = t > 1
        value += tl.where(counts, (t * log_t - t) + (0.5 * log_t + HALF_LOG_TWO_PI), 0.0)
        # 0 times an infinite target, and for t <= 0 an infinite logarithm, is NaN: torch's derivative.
        d_target += tl.where(counts, log_t + 0.5 / t, 0.0) + 0 * tl.where(counts, t, log_t)
    return value, (d_input, d_target)


@triton.jit
def is_variance(x, t, var):
    """Whether the variance is not below 0; NaN passes, as in torch."""
    return (var >= 0) | (var != var)


@triton.jit
def gaussian_nll(x, t, var, numbers, FLAGS: tl.constexpr, ROUNDED: tl.constexpr):
    """(log v + (x - t)^2 / v) / 2 for v = max(var, eps); the flag `full` adds log(2 pi) / 2.

    Derivatives pass through the maximum as if it were not there.
    """
    eps = splat(numbers[0], x)
    v = maximum(var, eps)
    difference = x - t
    if ROUNDED[0]:
        # A square reaches the subnormal reciprocals of the largest numbers.
        precision = tl.rsqrt(v)
        precision *= precision
    else:
        precision = 1 / v
    slope = difference * precision
    value = 0.5 * tl.fma(difference, slope, log(v, ROUNDED[0]))
    if FLAGS[0]:
        value += HALF_LOG_TWO_PI
    return value, (slope, -slope, 0.5 * tl.fma(-slope, slope, precision))


@triton.jit
def kl_div(x, t, third, numbers, FLAGS: tl.constexpr, ROUNDED: tl.constexpr):
    """T (log t - x), or e^t (t - x) if the target is a logarithm, as the flag log_target says."""
    if FLAGS[0]:
        p = exp(t, ROUNDED[0])
        log_ratio = t - x
        value = p * log_ratio
        d_input = -p
        d_target = tl.fma(p, log_ratio, p)
    else:
        # Finite at 0, where the product is 0: no number has a logarithm below -745.
        log_t = maximum(log(t, ROUNDED[0]), -1000.0)
        value = t * log_t - t * x
        d_input = -t
        # t / t, which is 1, makes the derivative at t = 0 NaN, as in torch.
        d_target = (log_t - x) + t / t
    return value, (d_input, d_target)


@triton.jit
def scaled_kl_div(k, derivative, scale, x, t, third, FLAGS: tl.constexpr):
    """The k-th derivative times `scale`.

    Torch does not ask for log t where the upstream gradient is 0, so the derivative of a negative target,
    which is NaN otherwise, is 0 there.
    """
    if k == 0 or FLAGS[0]:
        return derivative * scale
    else:
        return tl.where((scale == 0) & (t < 0), x + t, derivative) * scale


FORMULAS = {
    "poisson_nll_loss": Formula(poisson_nll),
    "gaussian_nll_loss": Formula(gaussian_nll, holds=is_variance, refusal="var has negative entry/entries"),
    "kl_div": Formula(kl_div, scaled=scaled_kl_div),
}

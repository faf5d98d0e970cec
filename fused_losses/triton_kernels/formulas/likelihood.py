"""Negative log-likelihoods and divergences of distributions given by their parameters."""

import triton
import triton.language as tl

from fused_losses.triton_kernels.formulas.math import exp, splat
from fused_losses.triton_kernels.formulas.pointwise import Formula

HALF_LOG_TWO_PI = tl.constexpr(0.91893853320467274)


@triton.jit
def poisson_nll(x, t, third, number, FLAGS: tl.constexpr):
    """e^x - t x for the logarithm x of the rate, or x - t log(x + eps) for the rate itself.

    FLAGS are log_input and full; `full` adds Stirling's approximation of log t!,
    t log t - t + log(2 pi t) / 2, for t > 1.
    """
    if FLAGS[0]:
        rate = exp(x)
        value = rate - t * x
        of_input = rate - t
        of_target = -x
    else:
        rate = x + splat(number, x)
        log_rate = tl.log(rate)
        value = x - t * log_rate
        of_input = 1 - t / rate
        of_target = -log_rate
    if FLAGS[1]:
        log_t = tl.log(t)
        counts = t > 1
        value += tl.where(counts, (t * log_t - t) + (0.5 * log_t + HALF_LOG_TWO_PI), 0.0)
        # 0 times a logarithm, so that the derivative at t <= 0 is NaN, as torch's.
        of_target += tl.where(counts, log_t + 0.5 / t, 0 * log_t)
    return value, of_input, of_target, of_input


@triton.jit
def is_variance(x, t, var):
    """NaN is one: torch asks whether any is below 0."""
    return (var >= 0) | (var != var)


@triton.jit
def gaussian_nll(x, t, var, number, FLAGS: tl.constexpr):
    """(log v + (x - t)^2 / v) / 2 for v = max(var, eps); FLAGS are `full`, which adds log(2 pi) / 2.

    Derivatives pass through the maximum as if it were not there.
    """
    eps = splat(number, x)
    v = tl.where(var < eps, eps, var)
    difference = x - t
    precision = 1 / v
    slope = difference * precision
    value = 0.5 * (tl.log(v) + difference * slope)
    if FLAGS[0]:
        value += HALF_LOG_TWO_PI
    return value, slope, -slope, 0.5 * (precision - slope * slope)


@triton.jit
def kl_div(x, t, third, number, FLAGS: tl.constexpr):
    """T (log t - x), or e^t (t - x) where the target is a logarithm, as FLAGS say."""
    if FLAGS[0]:
        p = exp(t)
        log_ratio = t - x
        value = p * log_ratio
        of_input = -p
        of_target = p * (log_ratio + 1)
    else:
        log_t = tl.log(t)
        value = tl.where(t == 0, 0.0, t * log_t) - t * x
        of_input = -t
        # t / t: the derivative at t = 0 is NaN, as torch's.
        of_target = (log_t - x) + t / t
    return value, of_input, of_target, of_input


FORMULAS = {
    "poisson_nll_loss": Formula(poisson_nll, flags=2),
    "gaussian_nll_loss": Formula(
        gaussian_nll, flags=1, in_domain=is_variance, outside="var has negative entry/entries"
    ),
    "kl_div": Formula(kl_div, flags=1),
}

"""Losses of the difference of input and target."""

import triton
import triton.language as tl

from fused_losses.triton_kernels.formulas.math import splat
from fused_losses.triton_kernels.formulas.pointwise import Formula


@triton.jit
def l1(x, t, third, numbers, FLAGS: tl.constexpr, ROUNDED: tl.constexpr):
    """|x - t|; the derivative is 0 where x = t and, as in torch, at NaN."""
    difference = x - t
    sign = tl.where(difference > 0, 1.0, tl.where(difference < 0, -1.0, 0.0)).to(x.dtype)
    return tl.abs(difference), (sign, -sign)


@triton.jit
def mse(x, t, third, numbers, FLAGS: tl.constexpr, ROUNDED: tl.constexpr):
    """(x - t)^2."""
    difference = x - t
    slope = difference + difference
    return difference * difference, (slope, -slope)


@triton.jit
def smooth_l1(x, t, third, numbers, FLAGS: tl.constexpr, ROUNDED: tl.constexpr):
    """With d = x - t: d^2 / 2 beta below |d| = beta, |d| - beta / 2 from there on; the number is beta."""
    beta = splat(numbers[0], x)
    difference = x - t
    distance = tl.abs(difference)
    far = distance >= beta
    # The largest number of the dtype, so that 0 times the inverse of any beta is 0.
    most = 1.7976931348623157e308 if x.dtype == tl.float64 else 3.4028234663852886e38
    ratio = difference * splat(tl.minimum(1 / numbers[0], most), x)
    # 0 where the difference is, and a beta that float32 does not hold.
    sign = tl.where(difference < 0, -1.0, tl.where(difference > 0, 1.0, 0.0)).to(x.dtype)
    slope = tl.where(far, sign, ratio)
    return tl.where(far, distance - 0.5 * beta, 0.5 * difference * ratio), (slope, -slope)


@triton.jit
def huber(x, t, third, numbers, FLAGS: tl.constexpr, ROUNDED: tl.constexpr):
    """With d = x - t: d^2 / 2 below |d| = delta, else delta (|d| - delta / 2); the number is delta."""
    delta = splat(numbers[0], x)
    difference = x - t
    distance = tl.abs(difference)
    far = distance >= delta
    slope = tl.where(far, tl.where(difference < 0, -delta, delta), difference)
    value = tl.where(far, delta * (distance - 0.5 * delta), 0.5 * difference * difference)
    return value, (slope, -slope)


FORMULAS = {
    "l1_loss": Formula(l1),
    "mse_loss": Formula(mse),
    "smooth_l1_loss": Formula(smooth_l1),
    "huber_loss": Formula(huber),
}

"""Binary cross-entropy of logits, times a power of how wrong the probability is: easy elements count less."""

import triton
import triton.language as tl

from fused_losses.triton_kernels.formulas.binary import sigmoid
from fused_losses.triton_kernels.formulas.math import (
    exp,
    log,
    log1p,
    maximum,
    minimum,
    pow_of_unit,
    reciprocal,
    splat,
)
from fused_losses.triton_kernels.formulas.pointwise import Formula


@triton.jit
def ratio_near_zero(a, b, ROUNDED: tl.constexpr):
    """A / b for 0 <= b <= 1, where that is near 1 if b is subnormal, which 1 stands for there."""
    subnormal = b < 2.0**-126
    return tl.where(subnormal, 1.0, a * reciprocal(tl.where(subnormal, 1.0, b), ROUNDED))


@triton.jit
def sigmoid_focal(x, t, third, numbers, FLAGS: tl.constexpr, ROUNDED: tl.constexpr):
    """(1 - alpha + (2 alpha - 1) t) c u^gamma, with cross-entropy c and u = t (1 - p) + (1 - t) p.

    That is by how much p = sigmoid(x) is wrong; numbers are alpha, below 0 for no such factor, and gamma.
    d/dx = (...) u^gamma ((p - t) + gamma c u' / u), which is finite at u = 0 for any gamma.
    """
    negative = splat(tl.where(numbers[0] < 0, 1.0, 1 - numbers[0]), x)
    step = splat(tl.where(numbers[0] < 0, 0.0, 2 * numbers[0] - 1), x)
    is_steep = numbers[1] < 1
    e, larger, excess = sigmoid(x, ROUNDED)
    smaller = e * larger
    positive = x >= 0
    rest = 1 - t
    # The shares of the class that x speaks for, and of the other one.
    likely, other = tl.where(positive, t, rest), tl.where(positive, rest, t)
    # Of an infinite logit, 0 times it is nothing.
    loss = excess + tl.where(other == 0, 0.0, other * tl.abs(x))
    wrong = tl.fma(likely, smaller, other * larger)
    relative = tl.fma(likely, e, other)  # to the larger sigmoid
    exponent = tl.where(is_steep, numbers[1], numbers[1] - 1)
    if exponent == 1:
        power = wrong
    else:
        # Near 1, the logarithm knows more of the larger sigmoid than itself.
        exponents = splat(exponent, x)
        power = pow_of_unit(relative, exponents, ROUNDED[0]) * exp(-exponents * excess, ROUNDED[0])
    focus = tl.where(is_steep, power, power * wrong)
    # u^(gamma - 1) p (1 - p), which for gamma < 1 grows beyond bounds before it is multiplied.
    ratio = ratio_near_zero(e, relative, ROUNDED[1])
    slope = power * larger * tl.where(is_steep, ratio, smaller)
    # A loss that is larger than this has a slope of 0 here, of which infinity would make NaN.
    held = minimum(loss, 1e30)
    gamma = splat(numbers[1], x)
    of_size = tl.fma(focus, other - smaller, gamma * held * (slope * (other - likely)))
    share = tl.fma(t, step, negative)
    return share * focus * loss, (share * tl.where(positive, of_size, -of_size),)


@triton.jit
def asymmetric(x, t, third, numbers, FLAGS: tl.constexpr, ROUNDED: tl.constexpr):
    """C u^g, with c = -t log(p) - (1 - t) log(n) and n = min(q + clip, 1), for p = sigmoid(x) and q = 1 - p.

    u = t q + (1 - t) (1 - n), g = gamma_pos t + gamma_neg (1 - t); logarithms are held above that of eps. The
    numbers are gamma_neg, gamma_pos, clip and eps. d/dx = u^g (c' + g c u' / u).
    """
    clip = splat(numbers[2], x)
    most = splat(-tl.log(numbers[3]), x)
    e, larger, excess = sigmoid(x, ROUNDED)
    smaller = e * larger
    positive = x >= 0
    p, q = tl.where(positive, larger, smaller), tl.where(positive, smaller, larger)
    variance = larger * smaller
    rest = 1 - t
    of_positive = maximum(-x, 0.0) + excess
    above, kept = p - clip, q + clip
    left = maximum(above, 0.0)
    counts = tl.where(above < 0, 0.0, 1.0)
    # The logarithm is taken of the one that is not rounded; without a clip, it is that of a sigmoid.
    logarithm = tl.where(
        positive, log(minimum(kept, 1.0), ROUNDED[0]), log1p(-tl.where(positive, 0.0, left), ROUNDED[0])
    )
    is_clipped = numbers[2] > 0
    of_negative = tl.where(is_clipped, -logarithm, maximum(x, 0.0) + excess)
    slope_of_negative = tl.where(
        is_clipped, counts * variance * reciprocal(tl.where(is_clipped, kept, 1.0), ROUNDED[1]), p
    )
    slope_of_positive = tl.where(of_positive > most, 0.0, -q)
    slope_of_negative = tl.where(of_negative > most, 0.0, slope_of_negative)
    loss = tl.fma(t, minimum(of_positive, most), rest * minimum(of_negative, most))
    slope = tl.fma(t, slope_of_positive, rest * slope_of_negative)
    wrong = tl.fma(t, q, rest * left)
    gamma = tl.fma(t, splat(numbers[1], x), rest * splat(numbers[0], x))
    focus = pow_of_unit(wrong, gamma, ROUNDED[0])
    turn = variance * tl.fma(rest, counts, -t)
    return loss * focus, (focus * tl.fma(gamma * ratio_near_zero(loss, wrong, ROUNDED[1]), turn, slope),)


FORMULAS = {
    "sigmoid_focal_loss": Formula(sigmoid_focal),
    "asymmetric_loss": Formula(asymmetric),
}

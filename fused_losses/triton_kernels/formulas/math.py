"""The functions that formulas are written in, for blocks of float32 or float64.

Where Triton's own are not exact enough, or missing, these come from the device's library, which the
interpreter lacks.
"""

import triton
import triton.language as tl
from triton import knobs
from triton.language.extra import libdevice

INTERPRETED = tl.constexpr(knobs.runtime.interpret)
"""Whether kernels run in Triton's interpreter, on the CPU."""


@triton.jit
def splat(value, like):
    """A number in the shape and type of `like`; float64 itself would turn all that it meets into float64."""
    return tl.full(like.shape, value, like.dtype)


@triton.jit
def scalar(value):
    """A float argument as a scalar of float64; in the interpreter, it is a Python float."""
    return tl.full((), value, tl.float64)


@triton.jit
def exp(x):
    """e^x to 2 units in the last place; tl.exp rounds x log2(e), which costs as many units as x is large."""
    if INTERPRETED:
        return tl.exp(x)
    else:
        return libdevice.exp(x)


@triton.jit
def exp_of_rounded(x, ROUNDED: tl.constexpr):
    """e^x; by a single instruction if what is made of it is ROUNDED to 16 bits."""
    if INTERPRETED:
        return tl.exp(x)
    elif ROUNDED:
        # Without the library's guard of subnormal results, which no 16 bits have room for.
        return libdevice.exp2(x * 1.4426950408889634)  # log2(e)
    else:
        return libdevice.exp(x)


@triton.jit
def log1p(x):
    """log(1 + x) for x >= -1: the logarithm of the rounded sum, and what the rounding lost."""
    one_more = 1 + x
    lost = x - (one_more - 1)
    # At x = -1 and at infinity nothing is lost, but the quotient is NaN.
    return tl.log(one_more) + tl.where(lost == 0, 0.0, lost / one_more)


@triton.jit
def _expm1_of_negative(x):
    """e^x - 1 for x <= 0: what rounding e^x has lost is in the logarithm of that (W. Kahan)."""
    u = tl.exp(x)
    exact = (u - 1) * (x / tl.log(tl.where((u == 1) | (u == 0), 0.5, u)))
    return tl.where(u == 1, x, tl.where(u == 0, -1.0, exact))


@triton.jit
def tanh(x):
    """The hyperbolic tangent, exact for small x, too."""
    if INTERPRETED:
        # In float64 for both types, to be as exact as a device; near 0, from a difference that does not
        # cancel.
        doubled = -2 * tl.abs(x.to(tl.float64))
        lost = _expm1_of_negative(doubled)
        u = tl.exp(doubled)
        size = tl.where(doubled < -1, 1 - 2 * u / (1 + u), -lost / (2 + lost)).to(x.dtype)
        return tl.where(x < 0, -size, size)
    else:
        return libdevice.tanh(x)


@triton.jit
def pow(x, p):
    """x^p for x >= 0."""
    if INTERPRETED:
        # 0 and infinity have logarithms that lead to the right powers, but for p = 0.
        power = tl.exp(p * tl.log(x.to(tl.float64))).to(x.dtype)
        return tl.where(splat(p, x) == 0, 1.0, power)
    else:
        return libdevice.pow(x, splat(p, x))

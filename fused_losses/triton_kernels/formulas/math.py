"""The functions that formulas are written in, for blocks of float32 or float64.

Where Triton's own are not exact enough, or missing, these come from the device's library, which the
interpreter lacks. What is ROUNDED to 16 bits takes the device's approximate units, in forms that are exact
for small arguments, too; no function branches.
"""

from typing import Any

import triton
import triton.language as tl
from triton import knobs
from triton.language.core import builtin
from triton.language.extra import libdevice

INTERPRETED = tl.constexpr(knobs.runtime.interpret)
"""Whether kernels run in Triton's interpreter, on the CPU."""


LOG2_E = tl.constexpr(1.4426950408889634)
"""The binary logarithm of e."""


@triton.jit
def splat(value, like):
    """A number in the shape and type of `like`; float64 itself would turn all that it meets into float64."""
    return tl.full(like.shape, value, like.dtype)


@triton.jit
def scalar(value):
    """A float argument as a scalar of float64; in the interpreter, it is a Python float."""
    return tl.full((), value, tl.float64)


@builtin
def has_ptx(_semantic: Any = None) -> tl.constexpr:
    """Whether a kernel, which is compiled, is compiled to PTX, the language of inline assembly here."""
    return tl.constexpr(_semantic.builder.options.backend_name == "cuda")


@triton.jit
def _approximate_log2(x):
    """The binary logarithm of normal float32, with an error of 2^-22, which is absolute between 1/2 and 2."""
    if INTERPRETED:
        return tl.log2(x)
    elif has_ptx():
        return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)
    else:
        return tl.log2(x)


@triton.jit
def maximum(x, y):
    """The larger number; NaN if either is."""
    return tl.maximum(x, y, tl.PropagateNan.ALL)


@triton.jit
def minimum(x, y):
    """The smaller number; NaN if either is."""
    return tl.minimum(x, y, tl.PropagateNan.ALL)


@triton.jit
def exp(x, ROUNDED: tl.constexpr):
    """e^x to 2 units in the last place, or to 2^-20 if it is ROUNDED to 16 bits.

    tl.exp rounds x log2(e), which costs as many units as x is large. For 16 bits, this is the square of
    2^(x log2(e) / 2), a single instruction: it takes subnormal results for 0, which only a square is then.
    """
    if ROUNDED:
        root = tl.exp2(x * 0.7213475204444817)  # log2(e) / 2
        return root * root
    elif INTERPRETED:
        return tl.exp(x)
    else:
        return libdevice.exp(x)


@triton.jit
def exp_of_rounded(x, ROUNDED: tl.constexpr):
    """e^x; by a single instruction if what is made of it is ROUNDED to 16 bits."""
    if ROUNDED:
        return exp2_of_rounded(x * LOG2_E)
    elif INTERPRETED:
        return tl.exp(x)
    else:
        return libdevice.exp(x)


@triton.jit
def exp2_of_rounded(x):
    """2^x by a single instruction, which takes subnormal results for 0: no 16 bits have room for them."""
    if INTERPRETED:
        return tl.exp2(x)
    else:
        return libdevice.exp2(x)


# Bits of float32, as int32: of 1, of the least number not below 2/3, and all of the exponent.
ONE = tl.constexpr(0x3F800000)
TWO_THIRDS = tl.constexpr(0x3F2AAAAB)
EXPONENT = tl.constexpr(-0x800000)


@triton.jit
def log(x, ROUNDED: tl.constexpr):
    """The natural logarithm, to 1 unit in the last place, or to 2^-21 if it is ROUNDED to 16 bits."""
    if ROUNDED:
        # The instruction takes subnormal numbers, which bfloat16 has, for 0: they are multiplied by 2^24.
        subnormal = x < 2.0**-126
        scaled = tl.where(subnormal, x * 2.0**24, x)
        lowered = tl.where(subnormal, -16.635532333438686, 0.0)  # -24 log(2)
        return tl.fma(_approximate_log2(scaled), 0.6931471805599453, lowered)
    else:
        return tl.log(x)


@triton.jit
def log_of_unit(x, ROUNDED: tl.constexpr):
    """The natural logarithm for 0 < x <= 1, as exact as `log`; at 0, a number below -100."""
    if ROUNDED:
        # 2^8 times the least subnormal number of bfloat16 is normal. The last number is -8 log(2).
        return tl.fma(_approximate_log2(x * 256), 0.6931471805599453, -5.545177444479562)
    elif x.dtype == tl.float64:
        return tl.log(x)
    else:
        # x = 2^k (1 + f), by the bits of 2^24 x, which is normal; 0 of either sign looks like 2^-151.
        bits = (tl.abs(x) * 2.0**24).to(tl.int32, bitcast=True) - 0x0C000000  # 24 as an exponent
        exponent = (bits - TWO_THIRDS) & EXPONENT
        return _log_of_parts((bits - exponent).to(tl.float32, bitcast=True) - 1, exponent)


@triton.jit
def log1p(x, ROUNDED: tl.constexpr):
    """log(1 + x) for -1 <= x <= 0, to 2 units in the last place, or to 2^-10 if it is ROUNDED to 16 bits."""
    one_more = 1 + x
    if ROUNDED:
        # Never less than log(1 + x), by its error and the rounding of 1 + x; and never more than x, which is
        # the logarithm itself where these are large beside it.
        return minimum(tl.fma(_approximate_log2(one_more), 0.6931471805599453, 2.0**-22), x)
    elif x.dtype == tl.float64:
        return _log1p_of_double(x)
    else:
        # 1 + x = 2^k (1 + f), with f from x itself and not from the rounded sum.
        exponent = (tl.abs(one_more).to(tl.int32, bitcast=True) - TWO_THIRDS) & EXPONENT
        scale = (-exponent + ONE).to(tl.float32, bitcast=True)  # 2^-k
        result = _log_of_parts(tl.fma(x, scale, scale - 1), exponent)
        return tl.where(one_more == 0, float("-inf"), result)


@triton.jit
def log1p_of_unit(x, ROUNDED: tl.constexpr):
    """log(1 + x) for 0 <= x <= 1, to 2 units in the last place, or to 2^-11 if it is ROUNDED to 16 bits.

    The product of x and the polynomial of the least relative error whose constant is 1.
    """
    if ROUNDED:
        p = tl.fma(x, -0.0781840384, 0.26069358)
        p = tl.fma(p, x, -0.489695996)
        return x * tl.fma(p, x, 1.0)
    elif x.dtype == tl.float64:
        return _log1p_of_double(x)
    else:
        p = tl.fma(x, -0.00331847463, 0.0202045944)
        p = tl.fma(p, x, -0.0576644614)
        p = tl.fma(p, x, 0.10680557)
        p = tl.fma(p, x, -0.153553978)
        p = tl.fma(p, x, 0.196954012)
        p = tl.fma(p, x, -0.249585882)
        p = tl.fma(p, x, 0.33330512)
        p = tl.fma(p, x, -0.499999315)
        return x * tl.fma(p, x, 1.0)


@triton.jit
def _log_of_parts(f, exponent):
    """log(2^k (1 + f)) for f between -1/3 and 1/3; `exponent` is 2^23 k, as int32.

    log(1 + f) is f + f^2 p(f), with the polynomial p of the least relative error.
    """
    p = tl.fma(f, 0.140263617, -0.153885394)
    p = tl.fma(p, f, 0.139958069)
    p = tl.fma(p, f, -0.164159611)
    p = tl.fma(p, f, 0.200111687)
    p = tl.fma(p, f, -0.250078201)
    p = tl.fma(p, f, 0.333331972)
    p = tl.fma(p, f, -0.499999374)
    # The number is 2^-23 log(2).
    return tl.fma(exponent.to(tl.float32), 8.262958294867817e-08, tl.fma(p * f, f, f))


@triton.jit
def _log1p_of_double(x):
    """log(1 + x) for x >= -1: the logarithm of the rounded sum, and what the rounding lost."""
    one_more = 1 + x
    lost = x - (one_more - 1)
    # At x = -1 and at infinity nothing is lost, but the quotient is NaN.
    return tl.log(one_more) + tl.where(lost == 0, 0.0, lost / one_more)


@triton.jit
def reciprocal(x, ROUNDED: tl.constexpr):
    """1 / x for 2^-126 <= x <= 2^126, to 1 unit in the last place, or to 2^-22 if ROUNDED to 16 bits."""
    if INTERPRETED or x.dtype == tl.float64:
        return 1 / x
    elif has_ptx():
        r = tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)
        return r if ROUNDED else tl.fma(r, tl.fma(-x, r, 1.0), r)
    else:
        return 1 / x


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
def pow_of_unit(x, p, ROUNDED: tl.constexpr):
    """x^p for 0 <= x <= 1 and p >= 0, a number for each; 0^0 is 1."""
    if INTERPRETED:
        power = tl.exp(p.to(tl.float64) * tl.log(x.to(tl.float64))).to(x.dtype)
        return tl.where(p == 0, 1.0, power)
    elif ROUNDED:
        root = tl.exp2(0.5 * p * _approximate_log2(x))
        return tl.where(p == 0, 1.0, root * root)
    else:
        return libdevice.pow(x, p)


@triton.jit
def pow(x, p):
    """x^p for x >= 0."""
    if INTERPRETED:
        # 0 and infinity have logarithms that lead to the right powers, but for p = 0.
        power = tl.exp(p * tl.log(x.to(tl.float64))).to(x.dtype)
        return tl.where(splat(p, x) == 0, 1.0, power)
    else:
        return libdevice.pow(x, splat(p, x))

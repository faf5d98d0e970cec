"""Distances between two vectors x and y, and their derivatives.

Which DISTANCE it is is compiled in. Each is made of one to three numbers, which a pass over the vectors adds
up:

    start, add     numbers before the first element, and with one more of each vector, both (ROWS, CHUNK)
    whole          numbers along whole vectors, (ROWS, 1), from those of lanes
    value          the distance, (ROWS, 1)
    slope          a tuple of (ROWS, 1), from which derivatives are made, times a factor, (ROWS, 1)
    derivatives    with respect to elements of x and y, (ROWS, CHUNK)

Differences are x - y + eps, as in torch's pairwise_distance; the derivative of a norm is 0 where the norm is
0. A product and a sum are rounded together only where they are an fma here: kernels are compiled without
contraction.
"""

import triton
import triton.language as tl

from fused_losses.triton_kernels.formulas.math import pow, splat

EUCLIDEAN = tl.constexpr(0)
"""(sum d^2)^(1/2)."""
MANHATTAN = tl.constexpr(1)
"""sum |d|: for p = 1, and for any other finite p but 0 where vectors have a single element, whose |d|^p may
be out of range."""
POWER = tl.constexpr(2)
"""(sum |d|^p)^(1/p) for any finite p but 0."""
EXTREME = tl.constexpr(3)
"""The largest |d| (p = infinity) or the smallest (p = -infinity). Elements that tie share the derivative."""
COSINE = tl.constexpr(4)
"""1 - x y / (|x| |y|), with norms held above 1e-8 as in torch's cosine_similarity; derivatives are those of
the norms themselves."""


@triton.jit
def root(x):
    """The square root of x, rounded once, as tl.sqrt of float32 is not."""
    if x.dtype == tl.float64:
        return tl.sqrt(x)
    else:
        return tl.sqrt_rn(x)


@triton.jit
def quotient(x, y):
    """X / y, rounded once, as the division of float32 is not."""
    if x.dtype == tl.float64:
        return x / y
    else:
        return tl.div_rn(x, y)


@triton.jit
def sign_of(x):
    """The sign of x: 1, -1 or 0; 0 where x is NaN."""
    return tl.where(x > 0, 1.0, tl.where(x < 0, -1.0, 0.0)).to(x.dtype)


@triton.jit
def _sign_of_extreme(p, like):
    """1 for the largest; -1 for the smallest |d|, which is the largest -|d|."""
    return splat(tl.where(p > 0, 1.0, -1.0), like)


@triton.jit
def start(zero, DISTANCE: tl.constexpr):
    """A sum; or the extreme |d| and how many elements have it; or the sums of x y, x x and y y."""
    if DISTANCE == COSINE:
        return zero, zero, zero
    elif DISTANCE == EXTREME:
        return zero - float("inf"), zero
    else:
        return (zero,)


@triton.jit
def add(x, y, numbers, p, eps, DISTANCE: tl.constexpr):
    """The numbers with an element of each vector added to them."""
    if DISTANCE == COSINE:
        # All three by the same operation, so that equal vectors have the same distances to a third.
        return tl.fma(x, y, numbers[0]), tl.fma(x, x, numbers[1]), tl.fma(y, y, numbers[2])
    else:
        d = (x - y) + splat(eps, x)
        if DISTANCE == EUCLIDEAN:
            return (tl.fma(d, d, numbers[0]),)
        elif DISTANCE == MANHATTAN:
            return (numbers[0] + tl.abs(d),)
        elif DISTANCE == POWER:
            return (numbers[0] + pow(tl.abs(d), p),)
        else:
            size = _sign_of_extreme(p, d) * tl.abs(d)
            # NaN is beyond everything, and nothing is beyond NaN.
            further = (size > numbers[0]) | (size != size)
            count = numbers[1] + tl.where(size == numbers[0], 1.0, 0.0)
            return tl.where(further, size, numbers[0]), tl.where(further, 1.0, count)


@triton.jit
def whole(numbers, DISTANCE: tl.constexpr):
    """The numbers of whole vectors."""
    if DISTANCE == EXTREME:
        extreme = tl.max(numbers[0], axis=1, keep_dims=True)
        counts = tl.where(numbers[0] == extreme, numbers[1], 0.0)
        # A maximum passes over NaN; the count brings it back.
        counts = tl.where(numbers[0] == numbers[0], counts, float("nan"))
        count = tl.sum(counts, axis=1, keep_dims=True)
        return extreme + (count - count), count
    else:
        return [tl.sum(lanes, axis=1, keep_dims=True) for lanes in numbers]


@triton.jit
def norm(square):
    """The norm that has this square, but at least 1e-8."""
    length = root(square)
    return tl.where(length < 1e-8, 1e-8, length)


@triton.jit
def value(numbers, p, DISTANCE: tl.constexpr):
    """The distance, from the numbers of whole vectors."""
    if DISTANCE == EUCLIDEAN:
        return root(numbers[0])
    elif DISTANCE == POWER:
        return pow(numbers[0], 1 / p)
    elif DISTANCE == EXTREME:
        return _sign_of_extreme(p, numbers[0]) * numbers[0]
    elif DISTANCE == COSINE:
        return 1 - quotient(numbers[0], norm(numbers[1]) * norm(numbers[2]))
    else:
        return numbers[0]


@triton.jit
def _along(factor, cosine, square):
    """What a cosine's derivative has of the vector itself, whose square this is; 0 for a vector of zeros."""
    length = root(square)
    return tl.where(square == 0, 0.0, quotient(factor * cosine, norm(square) * length))


@triton.jit
def slope(numbers, value, factor, p, DISTANCE: tl.constexpr):
    """What `derivatives` takes, from the numbers of whole vectors and their distance."""
    if DISTANCE == EUCLIDEAN:
        return (tl.where(value == 0, 0.0, quotient(factor, value)),)
    elif DISTANCE == MANHATTAN:
        # For p other than 1, torch divides |d| by the distance: NaN where both are infinite.
        return (tl.where(splat(p, value) == 1, factor, factor + 0 * value),)
    elif DISTANCE == POWER:
        is_zero = value == 0
        return tl.where(is_zero, 0.0, factor), tl.where(is_zero, 1.0, quotient(splat(1.0, value), value))
    elif DISTANCE == COSINE:
        norms = norm(numbers[1]) * norm(numbers[2])
        cosine = quotient(numbers[0], norms)
        along_x, along_y = _along(factor, cosine, numbers[1]), _along(factor, cosine, numbers[2])
        return quotient(-factor, norms), along_x, along_y
    else:
        return quotient(factor, numbers[1]), value


@triton.jit
def derivatives(slope, x, y, p, eps, DISTANCE: tl.constexpr):
    """With respect to x and y."""
    if DISTANCE == COSINE:
        return tl.fma(slope[0], y, slope[1] * x), tl.fma(slope[0], x, slope[2] * y)
    else:
        d = (x - y) + splat(eps, x)
        if DISTANCE == EUCLIDEAN:
            d_x = slope[0] * d
        elif DISTANCE == MANHATTAN:
            d_x = slope[0] * sign_of(d)
        elif DISTANCE == POWER:
            # (|d| / value)^(p - 1): powers of the quotient stay in range where those of either might not.
            size = slope[0] * pow(tl.abs(d) * slope[1], p - 1)
            # 0^(p - 1) may be infinite; a distance that is NaN makes all derivatives NaN.
            d_x = tl.where(d == 0, 0 * slope[1], sign_of(d) * size)
        else:
            d_x = tl.where(tl.abs(d) == slope[1], slope[0] * sign_of(d), 0.0)
        return d_x, -d_x

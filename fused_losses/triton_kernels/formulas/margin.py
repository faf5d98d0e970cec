"""Losses that are zero beyond a margin. At the margin itself, the derivative is 0."""

import triton
import triton.language as tl

from fused_losses.triton_kernels.formulas.math import maximum, splat
from fused_losses.triton_kernels.formulas.pointwise import Formula


@triton.jit
def hinge_embedding(x, t, third, numbers, FLAGS: tl.constexpr, ROUNDED: tl.constexpr):
    """X where the target is 1, max(0, margin - x) where it is -1, and their sum for any other target.

    Differentiable with respect to x alone; the number is the margin.
    """
    gap = splat(numbers[0], x) - x
    similar = t != -1
    dissimilar = t != 1
    value = tl.where(dissimilar, maximum(gap, 0.0), 0.0)
    value = tl.where(similar, value + x, value)
    slope = tl.where(similar, 1.0, 0.0) - tl.where(dissimilar & (gap > 0), 1.0, 0.0)
    return value, (slope,)


@triton.jit
def margin_ranking(x1, x2, y, numbers, FLAGS: tl.constexpr, ROUNDED: tl.constexpr):
    """max(0, margin - y (x1 - x2)) for y = 1 where x1 is to be ranked higher, -1 where x2 is.

    The number is the margin.
    """
    difference = x1 - x2
    gap = splat(numbers[0], x1) - y * difference
    active = tl.where(gap > 0, 1.0, 0.0)
    slope = y * active
    # A product, not a selection, so that an infinite or undefined difference has the derivative that torch
    # gives it.
    return maximum(gap, 0.0), (-slope, slope, -difference * active)


FORMULAS = {
    "hinge_embedding_loss": Formula(hinge_embedding),
    "margin_ranking_loss": Formula(margin_ranking),
}

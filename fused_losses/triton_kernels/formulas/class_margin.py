"""Losses that want the class of a row ahead of the others by a margin.

With y the row's class and j any other, gap = margin - x_y + x_j; where the gap is positive, value = gap^p,
and the derivative with respect to x_j is the value's slope; with respect to x_y, minus the sum of the
others'. At 0 and at NaN both are 0. A row of several classes adds up over them, j being none of them.
"""

import triton
import triton.language as tl


@triton.jit
def gap_of(margin, x_y, x):
    """In this order, as torch does, so that ties are the same."""
    return (margin - x_y) + x


@triton.jit
def terms(gap, others, POWER: tl.constexpr):
    """Value and slope of the gaps of other classes; 0 of the rest."""
    exceeds = others & (gap > 0)
    excess = tl.where(exceeds, gap, 0.0)
    if POWER == 1:
        return excess, exceeds.to(gap.dtype)
    else:
        return excess * excess, excess + excess

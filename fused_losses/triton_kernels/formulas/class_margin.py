"""Margins between the scores of a row's own class y and of the others.

For another class j, gap = margin - x_y + x_j. Where the gap is positive, its value is gap^p, for p = 1 or 2,
and the derivative with respect to x_j is the slope of that; else both are 0, as they are for a gap of NaN.
The derivative with respect to x_y is minus the sum of the others'. For a row of several classes, values and
derivatives add up over them, and j is none of them.
"""

import triton
import triton.language as tl


@triton.jit
def gap_of(margin, x_y, x):
    """The gap, added up in torch's order, so that it is 0 for the same scores."""
    return (margin - x_y) + x


@triton.jit
def terms(gap, others, POWER: tl.constexpr):
    """Value and slope of each gap, where `others` says that it is to another class; else 0."""
    exceeds = others & (gap > 0)
    excess = tl.where(exceeds, gap, 0.0)
    if POWER == 1:
        return excess, tl.where(exceeds, 1.0, 0.0).to(gap.dtype)
    else:
        return excess * excess, excess + excess

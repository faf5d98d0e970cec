"""Losses of whole rows: a pass over the rows yields a few numbers, which yield the value and derivatives.

A formula's functions take x, an element of each of the row's vectors; parameters, which are margin, p and
eps; and FLAGS, which are compiled in: the distance, and whether the nearer of two negatives counts.
"""

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

from fused_losses.triton_kernels.formulas import distances
from fused_losses.triton_kernels.formulas.distances import quotient, root
from fused_losses.triton_kernels.formulas.math import splat


@dataclass(frozen=True)
class Formula:
    """A formula, and what the engine must know of it."""

    vectors: int
    """How many rows it reads, and has derivatives with respect to; a third operand is one number per row."""
    start: Any
    """(zero, FLAGS): the numbers before the first element."""
    add: Any
    """(x, numbers, parameters, FLAGS): takes an element of each vector into account."""
    whole: Any
    """(numbers, FLAGS): those of rows, from those of a tile's lanes."""
    finish: Any
    """(numbers, target, scale, parameters, FLAGS): the value, and slopes, for derivatives times scale."""
    derivatives: Any
    """(slopes, x, parameters, FLAGS): of each vector."""


@triton.jit
def _pair(numbers, k: tl.constexpr, FLAGS: tl.constexpr):
    """Of anchor and positive, of anchor and negative, or of positive and negative."""
    each: tl.constexpr = len(numbers) // (3 if FLAGS[1] else 2)
    return numbers[k * each : (k + 1) * each]


@triton.jit
def _start_triplet(zero, FLAGS: tl.constexpr):
    pair = distances.start(zero, FLAGS[0])
    return pair + pair + pair if FLAGS[1] else pair + pair


@triton.jit
def _add_triplet(x, numbers, parameters, FLAGS: tl.constexpr):
    p = parameters[1]
    eps = parameters[2]
    of_positive = distances.add(x[0], x[1], _pair(numbers, 0, FLAGS), p, eps, FLAGS[0])
    of_negative = distances.add(x[0], x[2], _pair(numbers, 1, FLAGS), p, eps, FLAGS[0])
    if FLAGS[1]:
        between = distances.add(x[1], x[2], _pair(numbers, 2, FLAGS), p, eps, FLAGS[0])
        return of_positive + of_negative + between
    else:
        return of_positive + of_negative


@triton.jit
def _whole_triplet(numbers, FLAGS: tl.constexpr):
    of_positive = distances.whole(_pair(numbers, 0, FLAGS), FLAGS[0])
    of_negative = distances.whole(_pair(numbers, 1, FLAGS), FLAGS[0])
    if FLAGS[1]:
        return of_positive + of_negative + distances.whole(_pair(numbers, 2, FLAGS), FLAGS[0])
    else:
        return of_positive + of_negative


@triton.jit
def triplet_margin(numbers, target, scale, parameters, FLAGS: tl.constexpr):
    """max(0, d(anchor, positive) - d(anchor, negative) + margin).

    With the second of FLAGS, the distance from positive to negative counts where it is the smaller one. Where
    the two tie, they share the derivative.
    """
    p = parameters[1]
    of_positive = _pair(numbers, 0, FLAGS)
    of_negative = _pair(numbers, 1, FLAGS)
    to_positive = distances.value(of_positive, p, FLAGS[0])
    from_anchor = distances.value(of_negative, p, FLAGS[0])
    to_negative = from_anchor
    share = splat(1.0, scale)
    if FLAGS[1]:
        between = _pair(numbers, 2, FLAGS)
        from_positive = distances.value(between, p, FLAGS[0])
        nearer = from_anchor < from_positive
        share = tl.where(nearer, 1.0, tl.where(from_anchor > from_positive, 0.0, 0.5)).to(scale.dtype)
        to_negative = tl.where(nearer | (from_anchor != from_anchor), from_anchor, from_positive)
    gap = splat(parameters[0], scale) + to_positive - to_negative
    value = tl.where(gap <= 0, 0.0, gap)
    factor = tl.where(gap > 0, scale, 0.0)
    slope_of_positive = distances.slope(of_positive, to_positive, factor, FLAGS[0])
    slope_of_negative = distances.slope(of_negative, from_anchor, -factor * share, FLAGS[0])
    if FLAGS[1]:
        slope_between = distances.slope(between, from_positive, -factor * (1 - share), FLAGS[0])
        return value, (slope_of_positive, slope_of_negative, slope_between)
    else:
        return value, (slope_of_positive, slope_of_negative)


@triton.jit
def _derivatives_of_triplet(slopes, x, parameters, FLAGS: tl.constexpr):
    p = parameters[1]
    eps = parameters[2]
    of_anchor, of_positive = distances.derivatives(slopes[0], x[0], x[1], p, eps, FLAGS[0])
    from_anchor, of_negative = distances.derivatives(slopes[1], x[0], x[2], p, eps, FLAGS[0])
    of_anchor += from_anchor
    if FLAGS[1]:
        from_positive, to_negative = distances.derivatives(slopes[2], x[1], x[2], p, eps, FLAGS[0])
        of_positive += from_positive
        of_negative += to_negative
    return of_anchor, of_positive, of_negative


@triton.jit
def _start_pair(zero, FLAGS: tl.constexpr):
    return distances.start(zero, FLAGS[0])


@triton.jit
def _add_pair(x, numbers, parameters, FLAGS: tl.constexpr):
    return distances.add(x[0], x[1], numbers, parameters[1], parameters[2], FLAGS[0])


@triton.jit
def _whole_pair(numbers, FLAGS: tl.constexpr):
    return distances.whole(numbers, FLAGS[0])


@triton.jit
def cosine_embedding(numbers, target, scale, parameters, FLAGS: tl.constexpr):
    """1 - cos for a target of 1, max(0, cos - margin) for -1, 0 for any other.

    The squares of the norms have 1e-12 added, as in torch.
    """
    # A float in torch, too, whatever the input.
    eps = tl.full(scale.shape, 1e-12, tl.float32).to(scale.dtype)
    square_1 = numbers[1] + eps
    square_2 = numbers[2] + eps
    norms = root(square_1 * square_2)
    cosine = quotient(numbers[0], norms)
    gap = cosine - splat(parameters[0], scale)
    similar = target == 1
    dissimilar = target == -1
    factor = tl.where(similar, -scale, tl.where(dissimilar & (gap > 0), scale, 0.0))
    along = -factor * cosine
    slope = quotient(factor, norms), quotient(along, square_1), quotient(along, square_2)
    value = tl.where(similar, 1 - cosine, tl.where(dissimilar & ~(gap <= 0), gap, 0.0))
    return value, slope


@triton.jit
def _derivatives_of_pair(slope, x, parameters, FLAGS: tl.constexpr):
    return distances.derivatives(slope, x[0], x[1], parameters[1], parameters[2], FLAGS[0])


TRIPLET = Formula(3, _start_triplet, _add_triplet, _whole_triplet, triplet_margin, _derivatives_of_triplet)
PAIR = Formula(2, _start_pair, _add_pair, _whole_pair, cosine_embedding, _derivatives_of_pair)

FORMULAS = {
    "triplet_margin_loss": TRIPLET,
    "triplet_margin_with_distance_loss": TRIPLET,
    "cosine_embedding_loss": PAIR,
}

"""Losses of distances between vectors, made of a few numbers that a pass over the vectors adds up.

The functions of a formula take some of these:

    x           a tuple of blocks (ROWS, CHUNK), elements of each vector
    numbers     a tuple of blocks: (ROWS, CHUNK) while lanes add them up, (ROWS, 1) when they are whole
    target      (ROWS, 1), a number for each position
    scale       (ROWS, 1), a factor of the derivatives
    slopes      a tuple of blocks (ROWS, 1), or of tuples of them, for each distance
    parameters  margin, p and eps, scalars of float64
    FLAGS       compiled in: the distance (see `distances.py`), and whether a triplet takes the smaller of the
                negative's distances to anchor and positive
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
    """How many of the three operands are vectors, which it has derivatives with respect to; of two, the third
    operand is the target."""
    start: Any
    """(zero, FLAGS): numbers before the first element."""
    add: Any
    """(x, numbers, parameters, FLAGS): numbers that take an element of each vector into account."""
    whole: Any
    """(numbers, FLAGS): whole numbers, from those that lanes have added up."""
    finish: Any
    """(numbers, target, scale, parameters, FLAGS): the value, (ROWS, 1), and slopes, from whole numbers."""
    derivatives: Any
    """(slopes, x, parameters, FLAGS): derivatives with respect to each vector, (ROWS, CHUNK), times scale."""


@triton.jit
def _pair(numbers, k: tl.constexpr, FLAGS: tl.constexpr):
    """The numbers of one distance in a triplet.

    k is 0 for anchor and positive, 1 for anchor and negative, 2 for positive and negative.
    """
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
    to_positive = distances.add(x[0], x[1], _pair(numbers, 0, FLAGS), p, eps, FLAGS[0])
    to_negative = distances.add(x[0], x[2], _pair(numbers, 1, FLAGS), p, eps, FLAGS[0])
    if FLAGS[1]:
        between = distances.add(x[1], x[2], _pair(numbers, 2, FLAGS), p, eps, FLAGS[0])
        return to_positive + to_negative + between
    else:
        return to_positive + to_negative


@triton.jit
def _whole_triplet(numbers, FLAGS: tl.constexpr):
    to_positive = distances.whole(_pair(numbers, 0, FLAGS), FLAGS[0])
    to_negative = distances.whole(_pair(numbers, 1, FLAGS), FLAGS[0])
    if FLAGS[1]:
        return to_positive + to_negative + distances.whole(_pair(numbers, 2, FLAGS), FLAGS[0])
    else:
        return to_positive + to_negative


@triton.jit
def triplet_margin(numbers, target, scale, parameters, FLAGS: tl.constexpr):
    """max(0, d(anchor, positive) - d(anchor, negative) + margin).

    With the second of FLAGS, the distance from positive to negative takes the place of that from the anchor
    where it is the smaller one. Where the two tie, they share the derivative.
    """
    p = parameters[1]
    positive_numbers = _pair(numbers, 0, FLAGS)
    negative_numbers = _pair(numbers, 1, FLAGS)
    to_positive = distances.value(positive_numbers, p, FLAGS[0])
    from_anchor = distances.value(negative_numbers, p, FLAGS[0])
    to_negative = from_anchor
    share = splat(1.0, scale)
    if FLAGS[1]:
        between_numbers = _pair(numbers, 2, FLAGS)
        from_positive = distances.value(between_numbers, p, FLAGS[0])
        nearer = from_anchor < from_positive
        share = tl.where(nearer, 1.0, tl.where(from_anchor > from_positive, 0.0, 0.5)).to(scale.dtype)
        to_negative = tl.where(nearer | (from_anchor != from_anchor), from_anchor, from_positive)
    gap = splat(parameters[0], scale) + to_positive - to_negative
    value = tl.where(gap <= 0, 0.0, gap)
    factor = tl.where(gap > 0, scale, 0.0)
    slope_to_positive = distances.slope(positive_numbers, to_positive, factor, p, FLAGS[0])
    slope_to_negative = distances.slope(negative_numbers, from_anchor, -factor * share, p, FLAGS[0])
    if FLAGS[1]:
        slope_between = distances.slope(between_numbers, from_positive, -factor * (1 - share), p, FLAGS[0])
        return value, (slope_to_positive, slope_to_negative, slope_between)
    else:
        return value, (slope_to_positive, slope_to_negative)


@triton.jit
def _derivatives_of_triplet(slopes, x, parameters, FLAGS: tl.constexpr):
    p = parameters[1]
    eps = parameters[2]
    d_anchor, d_positive = distances.derivatives(slopes[0], x[0], x[1], p, eps, FLAGS[0])
    d_anchor_too, d_negative = distances.derivatives(slopes[1], x[0], x[2], p, eps, FLAGS[0])
    d_anchor += d_anchor_too
    if FLAGS[1]:
        d_positive_too, d_negative_too = distances.derivatives(slopes[2], x[1], x[2], p, eps, FLAGS[0])
        d_positive += d_positive_too
        d_negative += d_negative_too
    return d_anchor, d_positive, d_negative


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
    # torch rounds this constant to float32, even for inputs of float64.
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

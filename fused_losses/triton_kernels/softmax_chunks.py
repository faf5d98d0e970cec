"""Chunks of classes: from memory to the numbers of a softmax, and back to gradients in memory.

A chunk is a block as in `class_blocks.py`, and i are its places, from the block's begin on. `live`, (ROWS),
says which of the positions there are; `counts`, (ROWS), which of these count, having a label that is not
ignored. `mask` says which elements are there and count. Tensors are as in `iteration.position_arguments`;
DTYPE is what a kernel computes in.
"""

import triton
import triton.language as tl

from fused_losses.triton_kernels.class_blocks import (
    are_there,
    largest_of_classes,
    of_rows,
    places_from,
    zeros,
)
from fused_losses.triton_kernels.formulas.cross_entropy import (
    excess,
    scaled_logit,
    slope_of_logit,
    soft_target,
)
from fused_losses.triton_kernels.memory import elements_of


@triton.jit
def masks_of(
    i,
    live,
    counts,
    skipped,
    classes,
    PACK: tl.constexpr,
    SHIFTED: tl.constexpr,
    IN_ROWS: tl.constexpr,
):
    """What is read of a chunk, and its mask."""
    mask = are_there(i, counts, skipped, classes, PACK, SHIFTED)
    if IN_ROWS:
        return mask, mask
    else:
        # Neighbours belong to different rows, and are read together, whether they count or not.
        return are_there(i, live, skipped, classes, PACK, SHIFTED), mask


@triton.jit
def kept_of(counts, IN_ROWS: tl.constexpr):
    """What is kept of what is read; None: all of it."""
    if IN_ROWS:
        return
    else:
        return of_rows(counts)


@triton.jit
def load_chunk(tensor, rows, i, read, kept, other, DTYPE: tl.constexpr):
    """The elements at places i of rows, a block; `other` where they are not kept. None without a tensor."""
    if tensor[0] is None:
        return
    else:
        chunk = tl.load(elements_of(tensor, of_rows(rows), i), mask=read, other=other).to(DTYPE)
        return chunk if kept is None else tl.where(kept, chunk, other)


@triton.jit
def load_logits(x, rows, i, read, kept, mask, logit_scale, cap, ROUNDED: tl.constexpr, DTYPE: tl.constexpr):
    """Scaled and capped logits, a block: -inf outside the mask, unless they are scaled and it is None."""
    logits = load_chunk(x, rows, i, read, kept, float("-inf"), DTYPE)
    if logit_scale is None:
        return logits
    else:
        x_c = scaled_logit(logits, logit_scale, cap, ROUNDED)
        return x_c if mask is None else tl.where(mask, x_c, float("-inf"))


@triton.jit
def load_class_weights(weight, c, classes, DTYPE: tl.constexpr):
    """The weights of classes c, a block of a single row; None if there is no weight."""
    if weight[0] is None:
        return
    else:
        return tl.load(weight[0] + c.to(tl.int64) * weight[1], mask=c < classes, other=0).to(DTYPE)


@triton.jit
def load_soft_targets(
    probabilities,
    rows,
    weight,
    smoothing,
    classes,
    i,
    read,
    kept,
    mask,
    like,
    SOFT: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Soft targets, a block as `like`; 0 beyond a row's end. None unless there are SOFT targets.

    Without probabilities and weights, they are all the same: one number, (1, 1, 1), for all of the block.
    With them, rows are not shifted.
    """
    if SOFT:
        t = load_chunk(probabilities, rows, i, read, kept, 0.0, DTYPE)
        w = load_class_weights(weight, i, classes, DTYPE)
        HAS_PROBABILITIES: tl.constexpr = probabilities[0] is not None
        if w is not None:
            return soft_target(t, w, smoothing, classes, like, HAS_PROBABILITIES)
        elif HAS_PROBABILITIES:
            q = soft_target(t, w, smoothing, classes, like, HAS_PROBABILITIES)
            return tl.where(i < classes, q, 0.0)
        else:
            return tl.full((1, 1, 1), smoothing / classes, DTYPE)
    else:
        return


@triton.jit
def smoothing_mass(
    weight, smoothing, classes, chunks, PARTS: tl.constexpr, WIDTH: tl.constexpr, DTYPE: tl.constexpr
):
    """The sum of a row's soft targets without probabilities, a scalar: the same for all rows."""
    if weight[0] is None:
        return smoothing.to(DTYPE)
    else:
        total = zeros(PARTS, 1, WIDTH, DTYPE)
        for k in range(0, chunks):
            c = places_from(k * PARTS * WIDTH, PARTS, WIDTH)
            total += load_class_weights(weight, c, classes, DTYPE)
        return tl.sum(tl.sum(tl.sum(total, axis=0), axis=0), axis=0) * (smoothing / classes).to(DTYPE)


@triton.jit
def finite_maximum(m):
    """A maximum to subtract: 0 if all logits are -inf, so that exponentials are 0 and not NaN."""
    return tl.where(m == float("-inf"), 0.0, m)


@triton.jit
def largest_logits(logits, i, mask):
    """Each row's largest logit, (ROWS), and the first of the places that have it; NaN is passed over."""
    numbers = tl.where(logits == logits, logits, float("-inf"))
    largest = largest_of_classes(numbers)
    is_largest = (numbers == of_rows(largest)) & mask
    # The first is minus the largest of all numbers that are minus a place.
    return largest, -largest_of_classes(tl.where(is_largest, -i, 1 - 2**31))


@triton.jit
def logit_gradients(
    e,
    relative,
    q,
    logits,
    mask,
    slope,
    numerator_factor,
    excess_factor,
    cap,
    ROUNDED: tl.constexpr,
):
    """Gradients of a chunk's logits as the user gives them, a block, but for the targets' own elements.

    Takes:
        e: exp(x - m) times a unit, a block.
        relative: x - m, a block.
        q: Soft targets, a block, or None.
        logits: x, a block.
        mask: Which elements are there and count, a block; None if no logit is -inf for not being there.
        slope: Each loss's factor, (ROWS), times what all logits share of dx/dv, as have the next two.
        numerator_factor: What the gradient has of e, (ROWS).
        excess_factor: What it has of e (x - m), (ROWS); None without an entropy.
        cap: A scalar, or None.
    """
    gradient = e * of_rows(numerator_factor)
    if excess_factor is not None:
        gradient += excess(e, relative) * of_rows(excess_factor)
    if q is not None:
        gradient -= q * of_rows(slope)
    if cap is None:
        return gradient
    else:
        gradient *= slope_of_logit(logits, cap, ROUNDED)
        # The slope at -inf, in rows that do not count, is infinite.
        return gradient if mask is None else tl.where(mask, gradient, 0.0)


@triton.jit
def probability_gradients(relative, s, factor, weight, c, classes, DTYPE: tl.constexpr):
    """Gradients of a chunk's probabilities, a block, from x - m, s and a factor, (ROWS)."""
    gradient = (of_rows(tl.log(s)) - relative) * of_rows(factor)
    w = load_class_weights(weight, c, classes, DTYPE)
    if w is not None:
        gradient *= w
    return gradient

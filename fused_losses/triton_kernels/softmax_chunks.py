"""Chunks of classes: from memory to the numbers of a softmax, and back to gradients in memory.

A chunk is a block (ROWS, CHUNK): classes `c`, (CHUNK), of the rows of a tile of positions. `in_row`, (CHUNK),
says which of the classes there are; `live`, (ROWS), which of the positions; and `counts`, (ROWS), which of
these count, having a label that is not ignored. Tensors are as in `iteration.position_arguments`; DTYPE is
what a kernel computes in.
"""

import triton
import triton.language as tl

from fused_losses.triton_kernels.formulas.cross_entropy import (
    excess,
    scaled_logit,
    slope_of_logit,
    soft_target,
)
from fused_losses.triton_kernels.memory import elements_of


@triton.jit
def load_chunk(tensor, rows, c, in_row, live, counts, other, DTYPE: tl.constexpr, IN_ROWS: tl.constexpr):
    """Classes c of rows, (ROWS, CHUNK); `other` in rows that do not count. None if the tensor is absent."""
    if tensor[0] is None:
        return
    else:
        pointers = elements_of(tensor, rows[:, None], c[None, :])
        if IN_ROWS:
            return tl.load(pointers, mask=counts[:, None] & in_row[None, :], other=other).to(DTYPE)
        else:
            # Neighbours belong to different rows, and are read together, whether they count or not.
            chunk = tl.load(pointers, mask=live[:, None] & in_row[None, :], other=other).to(DTYPE)
            return tl.where(counts[:, None], chunk, other)


@triton.jit
def load_logits(
    x, rows, c, in_row, live, counts, logit_scale, cap, DTYPE: tl.constexpr, IN_ROWS: tl.constexpr
):
    """Scaled and capped logits, (ROWS, CHUNK); -inf beyond a row's end, and in rows that do not count."""
    logits = load_chunk(x, rows, c, in_row, live, counts, float("-inf"), DTYPE, IN_ROWS)
    if logit_scale is None:
        return logits
    else:
        x_c = scaled_logit(logits, logit_scale, cap)
        return tl.where(counts[:, None] & in_row[None, :], x_c, float("-inf"))


@triton.jit
def load_class_weights(weight, c, in_row, DTYPE: tl.constexpr):
    """The weights of classes c, (CHUNK); None if there is no weight."""
    if weight[0] is None:
        return
    else:
        return tl.load(weight[0] + c.to(tl.int64) * weight[1], mask=in_row, other=0).to(DTYPE)


@triton.jit
def load_soft_targets(
    probabilities,
    rows,
    weight,
    smoothing,
    classes,
    c,
    in_row,
    live,
    counts,
    like,
    SOFT: tl.constexpr,
    DTYPE: tl.constexpr,
    IN_ROWS: tl.constexpr,
):
    """Soft targets, (ROWS, CHUNK), as `like`; 0 beyond a row's end. None unless there are SOFT targets."""
    if SOFT:
        t = load_chunk(probabilities, rows, c, in_row, live, counts, 0.0, DTYPE, IN_ROWS)
        w = load_class_weights(weight, c, in_row, DTYPE)
        HAS_PROBABILITIES: tl.constexpr = probabilities[0] is not None
        q = soft_target(t, w, smoothing, classes, like, HAS_PROBABILITIES)
        return tl.where(in_row[None, :], q, 0.0)
    else:
        return


@triton.jit
def smoothing_mass(weight, smoothing, classes, chunks, CHUNK: tl.constexpr, DTYPE: tl.constexpr):
    """The sum of a row's soft targets without probabilities, a scalar: the same for all rows."""
    if weight[0] is None:
        return smoothing.to(DTYPE)
    else:
        total = tl.zeros((CHUNK,), DTYPE)
        for k in range(0, chunks):
            c = k * CHUNK + tl.arange(0, CHUNK)
            total += load_class_weights(weight, c, c < classes, DTYPE)
        return tl.sum(total) * (smoothing / classes).to(DTYPE)


@triton.jit
def finite_maximum(m):
    """A maximum to subtract: 0 if all logits are -inf, so that exponentials are 0 and not NaN."""
    return tl.where(m == float("-inf"), 0.0, m)


@triton.jit
def largest_logits(logits, c, in_row):
    """Each row's largest logit, (ROWS), and the first of the classes that have it; NaN is passed over."""
    numbers = tl.where(logits == logits, logits, float("-inf"))
    largest = tl.max(numbers, axis=1)
    is_largest = (numbers == largest[:, None]) & in_row[None, :]
    return largest, tl.min(tl.where(is_largest, c[None, :], 2**31 - 1), axis=1)


@triton.jit
def logit_gradients(e, relative, q, logits, mask, slope, numerator_factor, excess_factor, logit_scale, cap):
    """Gradients of a chunk's logits as the user gives them, (ROWS, CHUNK), but for the targets' own elements.

    Takes:
        e, relative: exp(x - m) and x - m, (ROWS, CHUNK).
        q: Soft targets, (ROWS, CHUNK), or None.
        logits: x, (ROWS, CHUNK).
        mask: Which elements are there and count, (ROWS, CHUNK).
        slope: Each loss's factor, (ROWS).
        numerator_factor: What the gradient has of e, (ROWS).
        excess_factor: What it has of e (x - m), (ROWS); None without an entropy.
        logit_scale, cap: Scalars, or None.
    """
    gradient = e * numerator_factor[:, None]
    if excess_factor is not None:
        gradient += excess(e, relative) * excess_factor[:, None]
    if q is not None:
        gradient -= q * slope[:, None]
    if logit_scale is None:
        return gradient
    elif cap is None:
        return gradient * slope_of_logit(logits, logit_scale, cap)
    else:
        # The slope at -inf, in rows that do not count, is infinite.
        return tl.where(mask, gradient * slope_of_logit(logits, logit_scale, cap), 0.0)


@triton.jit
def probability_gradients(relative, s, factor, weight, c, in_row, DTYPE: tl.constexpr):
    """Gradients of a chunk's probabilities, (ROWS, CHUNK), from x - m, s and a factor, (ROWS)."""
    gradient = (tl.log(s)[:, None] - relative) * factor[:, None]
    w = load_class_weights(weight, c, in_row, DTYPE)
    if w is not None:
        gradient *= w[None, :]
    return gradient

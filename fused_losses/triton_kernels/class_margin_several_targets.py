"""The margin of several classes over all that are not among them: a row for each program."""

import triton
import triton.language as tl

from fused_losses.triton_kernels.formulas.class_margin import gap_of, terms
from fused_losses.triton_kernels.formulas.math import scalar
from fused_losses.triton_kernels.iteration import turns
from fused_losses.triton_kernels.memory import elements_of, load_numbers, row_starts, store, store_numbers
from fused_losses.triton_kernels.reduce import finish, upstream_of_reduced


@triton.jit
def _target(labels, list_start, k, classes):
    """A row's k-th target, int64; one that is no class fails an assertion of the device, and becomes 0."""
    y = tl.load(list_start + k * labels[1])
    in_bounds = (y >= 0) & (y < classes)
    tl.device_assert(in_bounds, "fused_losses: target is out of bounds")
    return tl.where(in_bounds, y, 0)


@triton.jit
def _count(labels, list_start, classes, CHUNK: tl.constexpr):
    """How many labels of a row are before the first -1, int64."""
    count = classes + tl.zeros((), tl.int64)
    for chunk in range(0, classes, CHUNK):
        k = chunk + tl.arange(0, CHUNK)
        y = tl.load(elements_of(labels, list_start, k), mask=k < classes, other=0)
        count = tl.minimum(count, tl.min(tl.where((y == -1) & (k < classes), k, classes)).to(tl.int64))
    return count


@triton.jit
def _others(labels, list_start, count, c, classes):
    """Which of the classes c are none of the row's targets."""
    others = c < classes
    for k in range(0, count):
        others = others & (c != _target(labels, list_start, k, classes))
    return others


@triton.jit(do_not_specialize=["divisor"], debug=True)
def multilabel_margin(
    x,
    labels,
    losses_upstream,
    grad_input,
    losses,
    upstream_ptr,
    loss_ptr,
    partials_ptr,
    arrived_ptr,
    rows: "i64",
    classes,
    divisor: "fp64",
    READY: tl.constexpr,
    DTYPE: tl.constexpr,
    CHUNK: tl.constexpr,
    RESIDENT: tl.constexpr,
):
    """Walks over rows, whose tensors are as in `class_margin_one_target.multi_margin`, but for labels.

    Takes:
        labels: (rows, classes), int64: each row's classes, up to the first -1.
        RESIDENT: A row fits into a chunk and is read once. Of a longer one, each chunk meets all targets, and
            then each target all chunks once more, for its own derivative: many targets in a long row take as
            many passes. Its gradient must not be the scores' own memory.
    """
    scale = upstream_of_reduced(upstream_ptr)
    if READY:
        if scale == 1:
            return
    divisor = scalar(divisor)
    scale = (scale / divisor).to(DTYPE)

    total = scalar(0.0)
    first, end, step = turns(rows, 1, tl.int64)
    for begin in range(first, end, step):
        row = begin + tl.zeros((), tl.int64)
        x_row = row_starts(x, (rows,), row)
        g_row = row_starts(grad_input, (rows,), row)
        list_start = row_starts(labels, (rows,), row)
        count = _count(labels, list_start, classes, CHUNK)
        slope = scale / classes
        if losses_upstream[0] is not None:
            slope *= load_numbers(losses_upstream, (rows,), row, None, None, DTYPE)
        values = tl.zeros((CHUNK,), DTYPE)
        for chunk in range(0, classes, CHUNK):
            c = chunk + tl.arange(0, CHUNK)
            mask = c < classes
            scores = tl.load(elements_of(x, x_row, c), mask=mask, other=0).to(DTYPE)
            others = _others(labels, list_start, count, c, classes)
            slopes = tl.zeros((CHUNK,), DTYPE)
            for k in range(0, count):
                y = _target(labels, list_start, k, classes)
                x_y = tl.load(elements_of(x, x_row, y)).to(DTYPE)
                value, d_x = terms(gap_of(1.0, x_y, scores), others, 1)
                values += value
                slopes += d_x
                if RESIDENT:
                    slopes = tl.where(c == y, slopes - tl.sum(d_x), slopes)
            if grad_input[0] is not None:
                # All threads have read the targets' scores, which this may overwrite.
                tl.debug_barrier()
                store(elements_of(grad_input, g_row, c), slopes * slope, mask)
        if not RESIDENT and grad_input[0] is not None:
            # The derivatives of targets are among the zeros stored above, by whichever thread.
            tl.debug_barrier()
            for k in range(0, count):
                y = _target(labels, list_start, k, classes)
                x_y = tl.load(elements_of(x, x_row, y)).to(DTYPE)
                slopes = tl.zeros((CHUNK,), DTYPE)
                # A class that is listed twice counts twice.
                listed = tl.zeros((), DTYPE)
                for other in range(0, count):
                    listed += (_target(labels, list_start, other, classes) == y).to(DTYPE)
                for chunk in range(0, classes, CHUNK):
                    c = chunk + tl.arange(0, CHUNK)
                    scores = tl.load(elements_of(x, x_row, c), mask=c < classes, other=0).to(DTYPE)
                    others = _others(labels, list_start, count, c, classes)
                    value, d_x = terms(gap_of(1.0, x_y, scores), others, 1)
                    slopes += d_x
                store(elements_of(grad_input, g_row, y), -tl.sum(slopes) * listed * slope, None)
        if loss_ptr is not None or losses[0] is not None:
            value = tl.sum(values) / classes
            total += value
            store_numbers(losses, (rows,), row, None, value)
    if loss_ptr is not None:
        finish(total, divisor, loss_ptr, partials_ptr, arrived_ptr)

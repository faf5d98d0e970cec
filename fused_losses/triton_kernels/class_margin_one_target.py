"""The margin of one class over all others: every class meets its row's own class alone, so one pass does."""

import triton
import triton.language as tl

from fused_losses.triton_kernels.formulas.class_margin import gap_of, terms
from fused_losses.triton_kernels.formulas.math import scalar
from fused_losses.triton_kernels.iteration import turns
from fused_losses.triton_kernels.labels import load_labels, weight_of_labels
from fused_losses.triton_kernels.memory import elements_of, load_numbers, row_starts, store, store_numbers
from fused_losses.triton_kernels.reduce import finish, upstream_of_reduced

NO_CLASS = tl.constexpr(-(2**63))
"""The label to ignore where none is to be: an int64 that no label has."""


@triton.jit(do_not_specialize=["margin", "divisor"], debug=True)
def multi_margin(
    x,
    labels,
    weight,
    losses_upstream,
    grad_input,
    losses,
    upstream_ptr,
    loss_ptr,
    partials_ptr,
    arrived_ptr,
    rows: "i64",
    classes,
    margin: "fp64",
    divisor: "fp64",
    POWER: tl.constexpr,
    READY: tl.constexpr,
    DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Walks over rows, whose tensors are as in `iteration.position_arguments`.

    Takes:
        x: (rows, classes), scores.
        labels: (rows), int64, each row's class.
        weight: (pointer, stride) of (classes) factors, or (None,).
        losses_upstream: (rows), the upstream gradient of each loss, or absent.
        grad_input: (rows, classes), where the gradient goes, which may be the scores' own memory; or absent.
        losses: (rows), where the loss of each row goes, or absent.
        upstream_ptr, loss_ptr, partials_ptr, arrived_ptr: See `reduce.reduction_arguments`.
        POWER: 1 or 2, of each gap.
    """
    margin = scalar(margin).to(DTYPE)
    scale = upstream_of_reduced(upstream_ptr)
    if READY:
        if scale == 1:
            return
    divisor = scalar(divisor)
    scale = (scale / divisor).to(DTYPE)

    total = tl.zeros((ROWS,), tl.float64)
    first, end, step = turns(rows, ROWS, tl.int64)
    for begin in range(first, end, step):
        row = begin + tl.arange(0, ROWS)
        live = row < rows
        y, counts = load_labels(labels, (rows,), row, live, classes, NO_CLASS)
        x_rows = row_starts(x, (rows,), row)
        g_rows = row_starts(grad_input, (rows,), row)
        x_y = tl.load(elements_of(x, x_rows, y), mask=counts, other=0).to(DTYPE)
        if grad_input[0] is not None:
            # In place, no thread may write what another one has yet to read.
            tl.debug_barrier()
        share = tl.full((ROWS,), 1, DTYPE) / classes * weight_of_labels(weight, y, counts, DTYPE)
        share = tl.where(counts, share, 0.0)
        slope = share * scale
        if losses_upstream[0] is not None:
            slope *= load_numbers(losses_upstream, (rows,), row, live, 0, DTYPE)
        values = tl.zeros((ROWS, CHUNK), DTYPE)
        slopes = values
        for chunk in range(0, classes, CHUNK):
            c = (chunk + tl.arange(0, CHUNK))[None, :]
            mask = live[:, None] & (c < classes)
            scores = tl.load(elements_of(x, x_rows[:, None], c), mask=mask, other=0).to(DTYPE)
            gap = gap_of(margin, x_y[:, None], scores)
            value, d_x = terms(gap, mask & (c != y[:, None]), POWER)
            values += value
            if grad_input[0] is not None:
                slopes += d_x
                store(elements_of(grad_input, g_rows[:, None], c), d_x * slope[:, None], mask)
        if grad_input[0] is not None:
            # One element of those stored above, by whichever thread: all must be there before.
            tl.debug_barrier()
            store(elements_of(grad_input, g_rows, y), -tl.sum(slopes, axis=1) * slope, counts)
        if loss_ptr is not None or losses[0] is not None:
            value = tl.sum(values, axis=1) * share
            total += value
            store_numbers(losses, (rows,), row, live, value)
    if loss_ptr is not None:
        finish(tl.sum(total), divisor, loss_ptr, partials_ptr, arrived_ptr)

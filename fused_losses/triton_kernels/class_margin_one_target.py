"""The margin of one class over all others: every class meets its row's own class alone, so one pass does."""

import triton
import triton.language as tl

from fused_losses.triton_kernels.class_blocks import (
    are_stored,
    are_there,
    in_packs,
    of_rows,
    places_from,
    sum_of_classes,
    zeros,
)
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
    INDEX: tl.constexpr,
    DTYPE: tl.constexpr,
    WHOLE: tl.constexpr,
    PACK: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
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
        WHOLE: A chunk holds a whole row.
        PACK, ROWS, PARTS, WIDTH: See `class_blocks.py`.
    """
    classes = in_packs(classes, PACK, False)
    margin = scalar(margin).to(DTYPE)
    scale = upstream_of_reduced(upstream_ptr)
    if READY:
        if scale == 1:
            return
    divisor = scalar(divisor)
    scale = (scale / divisor).to(DTYPE)

    total = tl.zeros((ROWS,), tl.float64)
    first, end, step = turns(rows, ROWS, INDEX)
    for begin in range(first, end, step):
        row = begin + tl.arange(0, ROWS)
        live = row < end
        y, counts = load_labels(labels, (rows,), row, live, classes, NO_CLASS)
        x_rows = row_starts(x, (rows,), row, PACK)
        g_rows = row_starts(grad_input, (rows,), row, PACK)
        x_y = tl.load(elements_of(x, x_rows, y), mask=counts, other=0).to(DTYPE)
        if grad_input[0] is not None:
            # In place, no thread may write what another one has yet to read.
            tl.debug_barrier()
        share = tl.full((ROWS,), 1, DTYPE) / classes * weight_of_labels(weight, y, counts, DTYPE)
        share = tl.where(counts, share, 0.0)
        slope = share * scale
        if losses_upstream[0] is not None:
            slope *= load_numbers(losses_upstream, (rows,), row, live, 0, DTYPE)
        values = zeros(PARTS, ROWS, WIDTH, DTYPE)
        slopes = values
        # A loop over a single chunk is none to the compiler.
        for chunk in range(0, PARTS * WIDTH if WHOLE else classes, PARTS * WIDTH):
            c = places_from(chunk, PARTS, WIDTH)
            mask = are_there(c, live, 0, classes, PACK, False)
            # Classes beyond a row's end have a gap of -inf, or of NaN, and neither exceeds 0.
            scores = tl.load(elements_of(x, of_rows(x_rows), c), mask=mask, other=float("-inf"))
            gap = gap_of(margin, of_rows(x_y), scores.to(DTYPE))
            value, d_x = terms(gap, c != of_rows(y.to(tl.int32)), POWER)
            values += value
            if grad_input[0] is not None:
                slopes += d_x
                stored = are_stored(c, live, 0, classes, PACK, False)
                store(elements_of(grad_input, of_rows(g_rows), c), d_x * of_rows(slope), stored)
        if grad_input[0] is not None:
            # One element of those stored above, by whichever thread: all must be there before.
            tl.debug_barrier()
            store(elements_of(grad_input, g_rows, y), -sum_of_classes(slopes) * slope, counts)
        if loss_ptr is not None or losses[0] is not None:
            value = sum_of_classes(values) * share
            total += value
            store_numbers(losses, (rows,), row, live, value)
    if loss_ptr is not None:
        finish(tl.sum(total), divisor, loss_ptr, partials_ptr, arrived_ptr)

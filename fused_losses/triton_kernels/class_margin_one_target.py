"""The margin of one class over all others: every class meets its row's own class alone, so one pass does."""

import triton
import triton.language as tl

from fused_losses.triton_kernels.formulas.class_margin import gap_of, terms
from fused_losses.triton_kernels.formulas.math import scalar
from fused_losses.triton_kernels.iteration import turns
from fused_losses.triton_kernels.labels import load_labels
from fused_losses.triton_kernels.reduce import finish, upstream_of_reduced

NO_CLASS = tl.constexpr(-(2**63))
"""No label is to be ignored."""


@triton.jit(do_not_specialize=["margin", "divisor"], debug=True)
def multi_margin(
    x,
    labels,
    weight,
    upstream,
    of_input,
    losses_ptr,
    loss_ptr,
    partials_ptr,
    arrived_ptr,
    rows: "i64",
    classes,
    margin: "fp64",
    divisor: "fp64",
    POWER: tl.constexpr,
    READY: tl.constexpr,
    T: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """A tensor is a pointer (None: absent), its stride along classes, and (its stride along rows,).

    What has one number per row lacks the first stride; an upstream gradient of the reduced loss has None
    instead of strides.
    """
    margin = scalar(margin).to(T)
    scale = upstream_of_reduced(upstream)
    if READY:
        if scale == 1:
            return
    divisor = scalar(divisor)
    scale = (scale / divisor).to(T)

    total = tl.zeros((ROWS,), tl.float64)
    first, end, step = turns(rows, ROWS, tl.int64)
    for begin in range(first, end, step):
        row = begin + tl.arange(0, ROWS)
        live = row < rows
        y, counts = load_labels(labels, (rows,), row, live, classes, NO_CLASS)
        x_rows = x[0] + row * x[2][0]
        x_y = tl.load(x_rows + y * x[1], mask=counts, other=0).to(T)
        if of_input[0] is not None:
            # In place, no one may write what another one has yet to read.
            tl.debug_barrier()
        share = tl.full((ROWS,), 1, T) / classes
        if weight[0] is not None:
            share *= tl.load(weight[0] + y * weight[1], mask=counts, other=0).to(T)
        share = tl.where(counts, share, 0.0)
        slope = share * scale
        if upstream[1] is not None:
            slope *= tl.load(upstream[0] + row * upstream[1][0], mask=live, other=0).to(T)
        values = tl.zeros((ROWS, CHUNK), T)
        slopes = values
        for chunk in range(0, classes, CHUNK):
            c = chunk + tl.arange(0, CHUNK)
            mask = live[:, None] & (c < classes)[None, :]
            scores = tl.load(x_rows[:, None] + (c.to(tl.int64) * x[1])[None, :], mask=mask, other=0).to(T)
            gap = gap_of(margin, x_y[:, None], scores)
            value, of_x = terms(gap, mask & (c[None, :] != y[:, None]), POWER)
            values += value
            if of_input[0] is not None:
                slopes += of_x
                place = (of_input[0] + row * of_input[2][0])[:, None] + (c.to(tl.int64) * of_input[1])[
                    None, :
                ]
                tl.store(place, (of_x * slope[:, None]).to(of_input[0].dtype.element_ty), mask=mask)
        if of_input[0] is not None:
            # One element of those stored above, by whichever thread: all must be there before.
            tl.debug_barrier()
            of_y = -tl.sum(slopes, axis=1) * slope
            place = of_input[0] + row * of_input[2][0] + y * of_input[1]
            tl.store(place, of_y.to(of_input[0].dtype.element_ty), mask=counts)
        if loss_ptr is not None or losses_ptr is not None:
            value = tl.sum(values, axis=1) * share
            total += value
            if losses_ptr is not None:
                tl.store(losses_ptr + row, value.to(losses_ptr.dtype.element_ty), mask=live)
    if loss_ptr is not None:
        finish(tl.sum(total), divisor, loss_ptr, partials_ptr, arrived_ptr)

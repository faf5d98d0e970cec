"""The likelihood of ready log-probabilities: an element for each position, and zeros around it."""

import triton
import triton.language as tl

from fused_losses.triton_kernels.formulas.math import scalar
from fused_losses.triton_kernels.iteration import offset_of, turns
from fused_losses.triton_kernels.labels import LABELS_PER_STEP, load_labels, weight_of_all
from fused_losses.triton_kernels.reduce import finish, upstream_of_reduced


@triton.jit(do_not_specialize=["ignore_index", "divisor"], debug=True)
def nll(
    x,
    labels,
    weight,
    upstream,
    of_input,
    losses,
    loss_ptr,
    partials_ptr,
    arrived_ptr,
    divisor_ptr,
    positions: "i64",
    sizes,
    classes,
    ignore_index: "i64",
    divisor: "fp64",
    COUNTS: tl.constexpr,
    READY: tl.constexpr,
    INDEX: tl.constexpr,
    T: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Tensors are as in `softmax_kernel.softmax`."""
    scale = upstream_of_reduced(upstream)
    if READY:
        if scale == 1:
            return
    divisor = scalar(divisor)
    if COUNTS:
        divisor = weight_of_all(
            labels, weight, sizes, positions, classes, ignore_index, LABELS_PER_STEP, INDEX
        )
    elif divisor_ptr is not None:
        divisor = tl.load(divisor_ptr).to(tl.float64)
    scale = (scale / divisor).to(T)

    total = tl.zeros((ROWS,), tl.float64)
    first, end, step = turns(positions, ROWS, INDEX)
    for begin in range(first, end, step):
        position = begin + tl.arange(0, ROWS)
        live = position < end
        y, counts = load_labels(labels, sizes, position, live, classes, ignore_index)
        x_rows = x[0] + offset_of(position, sizes, x[2])
        x_y = tl.load(x_rows + y * x[1], mask=counts, other=0).to(T)
        w_y = tl.where(counts, 1.0, 0.0).to(T)
        if weight[0] is not None:
            w_y = tl.load(weight[0] + y * weight[1], mask=counts, other=0).to(T)
        if loss_ptr is not None or losses[0] is not None:
            value = -w_y * x_y
            total += value
            if losses[0] is not None:
                place = losses[0] + offset_of(position, sizes, losses[1])
                tl.store(place, value.to(losses[0].dtype.element_ty), mask=live)
        if of_input[0] is not None:
            slope = tl.where(counts, -w_y * scale, 0.0)
            if upstream[1] is not None:
                u = tl.load(upstream[0] + offset_of(position, sizes, upstream[1]), mask=counts, other=0)
                slope *= u.to(T)
            # In place, no one may write what another one has yet to read.
            tl.debug_barrier()
            g_rows = of_input[0] + offset_of(position, sizes, of_input[2])
            for chunk in range(0, classes, CHUNK):
                c = chunk + tl.arange(0, CHUNK)
                g = tl.where(c[None, :] == y[:, None], slope[:, None], 0.0)
                place = g_rows[:, None] + (c.to(tl.int64) * of_input[1])[None, :]
                stored = live[:, None] & (c < classes)[None, :]
                tl.store(place, g.to(of_input[0].dtype.element_ty), mask=stored)
    if loss_ptr is not None:
        finish(tl.sum(total), divisor, loss_ptr, partials_ptr, arrived_ptr)

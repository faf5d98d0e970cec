"""The kernel of nll_loss: an element for each position, and zeros around it. `softmax.py` launches it."""

import triton
import triton.language as tl

from fused_losses.triton_kernels.class_blocks import are_stored, in_packs, of_rows, places_from
from fused_losses.triton_kernels.iteration import turns
from fused_losses.triton_kernels.labels import load_labels, mean_divisor, weight_of_labels
from fused_losses.triton_kernels.memory import elements_of, load_numbers, row_starts, store, store_numbers
from fused_losses.triton_kernels.reduce import finish, upstream_of_reduced


@triton.jit(do_not_specialize=["ignore_index", "divisor"], debug=True)
def nll(
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
    divisor_ptr,
    positions: "i64",
    sizes,
    classes,
    ignore_index: "i64",
    divisor: "fp64",
    COUNTS: tl.constexpr,
    READY: tl.constexpr,
    INDEX: tl.constexpr,
    DTYPE: tl.constexpr,
    PACK: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """-w_y x_y for each position's label y. Arguments are as in `softmax_kernel.softmax`."""
    classes = in_packs(classes, PACK, False)
    scale = upstream_of_reduced(upstream_ptr)
    if READY:
        if scale == 1:
            return
    divisor = mean_divisor(
        divisor, divisor_ptr, labels, weight, sizes, positions, classes, ignore_index, COUNTS, INDEX
    )
    scale = (scale / divisor).to(DTYPE)

    total = tl.zeros((ROWS,), tl.float64)
    first, end, step = turns(positions, ROWS, INDEX)
    for begin in range(first, end, step):
        position = begin + tl.arange(0, ROWS)
        live = position < end
        y, counts = load_labels(labels, sizes, position, live, classes, ignore_index)
        x_y = tl.load(elements_of(x, row_starts(x, sizes, position), y), mask=counts, other=0).to(DTYPE)
        w_y = weight_of_labels(weight, y, counts, DTYPE)
        if loss_ptr is not None or losses[0] is not None:
            value = tl.where(counts, -w_y * x_y, 0.0)
            total += value
            store_numbers(losses, sizes, position, live, value)
        if grad_input[0] is not None:
            slope = -w_y * scale
            if losses_upstream[0] is not None:
                slope *= load_numbers(losses_upstream, sizes, position, counts, 0, DTYPE)
            slope = tl.where(counts, slope, 0.0)
            # In place, no thread may write what another one has yet to read.
            tl.debug_barrier()
            rows = row_starts(grad_input, sizes, position, PACK)
            for first in range(0, classes, PARTS * WIDTH):
                c = places_from(first, PARTS, WIDTH)
                gradient = tl.where(c == of_rows(y.to(tl.int32)), of_rows(slope), 0.0)
                stored = are_stored(c, live, 0, classes, PACK, False)
                store(elements_of(grad_input, of_rows(rows), c), gradient, stored)
    if loss_ptr is not None:
        finish(tl.sum(total), divisor, loss_ptr, partials_ptr, arrived_ptr)

"""Class indices, and what the mean of class losses divides by."""

import triton
import triton.language as tl

from fused_losses.triton_kernels.iteration import offset_of, turns
from fused_losses.triton_kernels.reduce import finish

LABELS_PER_STEP = tl.constexpr(1024)
"""A few for each thread."""


@triton.jit
def load_labels(labels, sizes, position, live, classes, ignore_index):
    """The positions' classes, and which of them count; of those that do not, the class is 0.

    A class outside [0, classes) fails an assertion of the device; it is never used to read or write.
    """
    y = tl.load(labels[0] + offset_of(position, sizes, labels[1]), mask=live, other=0).to(tl.int64)
    counts = live & (y != ignore_index)
    in_bounds = (y >= 0) & (y < classes)
    tl.device_assert(in_bounds | ~counts, "fused_losses: target is out of bounds")
    counts = counts & in_bounds
    return tl.where(counts, y, 0), counts


@triton.jit
def _weight_of_labels(labels, weight, sizes, first, end, step, classes, ignore_index, BLOCK: tl.constexpr):
    """The sum of the weights of the labels in every step-th block, or their number, in float64."""
    total = tl.zeros((BLOCK,), tl.float64)
    for begin in range(first, end, step):
        position = begin + tl.arange(0, BLOCK)
        y, counts = load_labels(labels, sizes, position, position < end, classes, ignore_index)
        if weight[0] is not None:
            total += tl.load(weight[0] + y * weight[1], mask=counts, other=0).to(tl.float64)
        else:
            total += counts.to(tl.float64)
    return tl.sum(total)


@triton.jit
def weight_of_all(
    labels, weight, sizes, positions, classes, ignore_index, BLOCK: tl.constexpr, INDEX: tl.constexpr
):
    """As each program for itself adds it up: worth it where that reads less than another launch costs."""
    first = tl.full((), 0, INDEX)
    _, end, _ = turns(positions, BLOCK, INDEX)
    return _weight_of_labels(labels, weight, sizes, first, end, BLOCK, classes, ignore_index, BLOCK)


@triton.jit(do_not_specialize=["ignore_index"], debug=True)
def label_divisor(
    labels,
    weight,
    sizes,
    positions: "i64",
    classes,
    ignore_index: "i64",
    divisor_ptr,
    partials_ptr,
    arrived_ptr,
    INDEX: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The same, by all programs together."""
    first, end, step = turns(positions, BLOCK, INDEX)
    total = _weight_of_labels(labels, weight, sizes, first, end, step, classes, ignore_index, BLOCK)
    finish(total, 1.0, divisor_ptr, partials_ptr, arrived_ptr)

"""Class indices, and what the mean of class losses divides by: the weight of all labels."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fused_losses.triton_kernels.iteration import Strides, TensorArgument, index_type, turns
from fused_losses.triton_kernels.launch import launch
from fused_losses.triton_kernels.memory import load_numbers
from fused_losses.triton_kernels.reduce import finish, known_divisor, scratch
from fused_losses.triton_kernels.tiling import LEAST_WARPS, Tiling

LABELS_PER_STEP = tl.constexpr(1024)
"""How many labels a program adds up at once: 8 for each of its 128 threads, loads enough to be in flight."""


@triton.jit
def load_labels(labels, sizes, position, live, classes, ignore_index):
    """The classes of positions, int64, and which of them count; of those that do not, the class is 0.

    A class outside [0, classes) fails an assertion of the device; it is never used to read or write.
    """
    y = load_numbers(labels, sizes, position, live, 0, tl.int64)
    counts = live & (y != ignore_index)
    in_bounds = (y >= 0) & (y < classes)
    tl.device_assert(in_bounds | ~counts, "fused_losses: target is out of bounds")
    counts = counts & in_bounds
    return tl.where(counts, y, 0), counts


@triton.jit
def weight_of_labels(weight, y, counts, DTYPE: tl.constexpr):
    """The weights of labels y, 0 for those that do not count; if there is no weight, 1 for all of them.

    `weight` is (pointer, stride) of (C) numbers, or (None,).
    """
    if weight[0] is None:
        return tl.full(y.shape, 1, DTYPE)
    else:
        return tl.load(weight[0] + y * weight[1], mask=counts, other=0).to(DTYPE)


@triton.jit
def _total_weight(labels, weight, sizes, first, end, step, classes, ignore_index, BLOCK: tl.constexpr):
    """The total weight of the labels in the blocks at first, first + step, ..., before end, in float64."""
    total = tl.zeros((BLOCK,), tl.float64)
    for begin in range(first, end, step):
        position = begin + tl.arange(0, BLOCK)
        y, counts = load_labels(labels, sizes, position, position < end, classes, ignore_index)
        if weight[0] is None:
            total += counts.to(tl.float64)
        else:
            total += weight_of_labels(weight, y, counts, tl.float64)
    return tl.sum(total)


@triton.jit
def mean_divisor(
    divisor,
    divisor_ptr,
    labels,
    weight,
    sizes,
    positions,
    classes,
    ignore_index,
    COUNTS: tl.constexpr,
    INDEX: tl.constexpr,
):
    """What the sum of all losses is divided by, as float64.

    A number, or what an earlier launch has left at the pointer; or, if it COUNTS, the weight of all labels,
    which each program adds up for itself: worth it where that reads less than another launch costs.
    """
    if COUNTS:
        first = tl.full((), 0, INDEX)
        _, end, _ = turns(positions, LABELS_PER_STEP, INDEX)
        return _total_weight(
            labels, weight, sizes, first, end, LABELS_PER_STEP, classes, ignore_index, LABELS_PER_STEP
        )
    else:
        return known_divisor(divisor, divisor_ptr)


@triton.jit(do_not_specialize=["ignore_index"], debug=True)
def label_divisor(
    labels,
    weight,
    sizes,
    positions: "i64",
    classes,
    ignore_index: "i64",
    loss_ptr,
    partials_ptr,
    arrived_ptr,
    INDEX: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The weight of all labels, added up by all programs together, at `loss_ptr`: (), float64."""
    first, end, step = turns(positions, BLOCK, INDEX)
    total = _total_weight(labels, weight, sizes, first, end, step, classes, ignore_index, BLOCK)
    finish(total, 1.0, loss_ptr, partials_ptr, arrived_ptr)


def launch_label_divisor(
    labels: TensorArgument,
    weight: TensorArgument,
    sizes: Strides,
    count: int,
    classes: int,
    ignore_index: int,
    device: torch.device,
) -> Tensor:
    """The weight of the labels of `count` positions, or their number, by a launch of its own: (), float64."""
    tile = Tiling(LABELS_PER_STEP.value, 1, LEAST_WARPS)
    programs = tile.programs(count, device)
    partials, arrived = scratch(programs, device)
    divisor = torch.empty((), dtype=torch.float64, device=device)
    launch(
        label_divisor,
        programs,
        device,
        {
            "labels": labels,
            "weight": weight,
            "sizes": sizes,
            "positions": count,
            "classes": classes,
            "ignore_index": ignore_index,
            "loss_ptr": divisor,
            "partials_ptr": partials,
            "arrived_ptr": arrived,
        },
        INDEX=index_type(count),
        BLOCK=tile.rows,
        num_warps=tile.num_warps,
    )
    return divisor

"""The margin of several classes over all that are not among them: a row for each program."""

import triton
import triton.language as tl

from fused_losses.triton_kernels.formulas.class_margin import gap_of, terms
from fused_losses.triton_kernels.formulas.math import scalar
from fused_losses.triton_kernels.reduce import finish, upstream_of_reduced


@triton.jit
def _target(labels, row, k, classes):
    """A row's k-th target; one that is no class fails an assertion of the device, and reads class 0."""
    y = tl.load(labels[0] + row * labels[2][0] + k * labels[1])
    in_bounds = (y >= 0) & (y < classes)
    tl.device_assert(in_bounds, "fused_losses: target is out of bounds")
    return tl.where(in_bounds, y, 0)


@triton.jit
def _count(labels, row, classes, CHUNK: tl.constexpr):
    """How many labels are before the first -1."""
    count = classes + tl.zeros((), tl.int64)
    for chunk in range(0, classes, CHUNK):
        k = chunk + tl.arange(0, CHUNK)
        y = tl.load(labels[0] + row * labels[2][0] + k * labels[1], mask=k < classes, other=0)
        count = tl.minimum(count, tl.min(tl.where((y == -1) & (k < classes), k, classes)).to(tl.int64))
    return count


@triton.jit
def _others(labels, row, count, c, classes):
    """Which of the classes c are none of the row's targets."""
    others = c < classes
    for k in range(0, count):
        others = others & (c != _target(labels, row, k, classes))
    return others


@triton.jit(do_not_specialize=["divisor"], debug=True)
def multilabel_margin(
    x,
    labels,
    upstream,
    of_input,
    losses_ptr,
    loss_ptr,
    partials_ptr,
    arrived_ptr,
    rows: "i64",
    classes,
    divisor: "fp64",
    READY: tl.constexpr,
    T: tl.constexpr,
    CHUNK: tl.constexpr,
    RESIDENT: tl.constexpr,
):
    """Tensors are as in `multi_margin`. A RESIDENT row fits into a chunk and is read once.

    Of a longer one, each chunk meets all targets, and then each target all chunks once more, for its own
    derivative: many targets in a long row take as many passes.
    """
    scale = upstream_of_reduced(upstream)
    if READY:
        if scale == 1:
            return
    divisor = scalar(divisor)
    scale = (scale / divisor).to(T)

    total = scalar(0.0)
    for row in range(tl.program_id(0).to(tl.int64), rows, tl.num_programs(0).to(tl.int64)):
        count = _count(labels, row, classes, CHUNK)
        slope = scale / classes
        if upstream[1] is not None:
            slope *= tl.load(upstream[0] + row * upstream[1][0]).to(T)
        values = tl.zeros((CHUNK,), T)
        for chunk in range(0, classes, CHUNK):
            c = chunk + tl.arange(0, CHUNK)
            mask = c < classes
            scores = tl.load(x[0] + row * x[2][0] + c.to(tl.int64) * x[1], mask=mask, other=0).to(T)
            others = _others(labels, row, count, c, classes)
            slopes = tl.zeros((CHUNK,), T)
            for k in range(0, count):
                y = _target(labels, row, k, classes)
                x_y = tl.load(x[0] + row * x[2][0] + y * x[1]).to(T)
                value, of_x = terms(gap_of(1.0, x_y, scores), others, 1)
                values += value
                slopes += of_x
                if RESIDENT:
                    slopes = tl.where(c == y, slopes - tl.sum(of_x), slopes)
            if of_input[0] is not None:
                # All threads have read the targets' scores, which this may overwrite.
                tl.debug_barrier()
                place = of_input[0] + row * of_input[2][0] + c.to(tl.int64) * of_input[1]
                tl.store(place, (slopes * slope).to(of_input[0].dtype.element_ty), mask=mask)
        if not RESIDENT and of_input[0] is not None:
            tl.debug_barrier()
            for k in range(0, count):
                y = _target(labels, row, k, classes)
                x_y = tl.load(x[0] + row * x[2][0] + y * x[1]).to(T)
                slopes = tl.zeros((CHUNK,), T)
                listed = tl.zeros((), T)
                for other in range(0, count):
                    listed += (_target(labels, row, other, classes) == y).to(T)
                for chunk in range(0, classes, CHUNK):
                    c = chunk + tl.arange(0, CHUNK)
                    scores = tl.load(
                        x[0] + row * x[2][0] + c.to(tl.int64) * x[1], mask=c < classes, other=0
                    ).to(T)
                    others = _others(labels, row, count, c, classes)
                    value, of_x = terms(gap_of(1.0, x_y, scores), others, 1)
                    slopes += of_x
                of_y = -tl.sum(slopes) * listed * slope
                place = of_input[0] + row * of_input[2][0] + y * of_input[1]
                tl.store(place, of_y.to(of_input[0].dtype.element_ty))
        if loss_ptr is not None or losses_ptr is not None:
            value = tl.sum(values) / classes
            total += value
            if losses_ptr is not None:
                tl.store(losses_ptr + row, value.to(losses_ptr.dtype.element_ty))
    if loss_ptr is not None:
        finish(total, divisor, loss_ptr, partials_ptr, arrived_ptr)

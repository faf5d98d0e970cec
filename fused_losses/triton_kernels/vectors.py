"""The engine of losses of distances between vectors: sums along them, and derivatives while they are at hand.

`run` makes a launch of what it is asked for. The kernel `vectors` walks over positions, each of which has two
or three vectors of D elements. A loss's formula (`formulas/vectors.py`) says which numbers a pass over them
adds up (START, ADD, WHOLE), and what value and derivatives these make (FINISH, DERIVATIVES).
"""

import math

import triton
import triton.language as tl
from torch import Tensor

from fused_losses.call import Reduction
from fused_losses.shapes import broadcast
from fused_losses.triton_kernels import tiling
from fused_losses.triton_kernels.formulas import distances
from fused_losses.triton_kernels.formulas.math import scalar, splat
from fused_losses.triton_kernels.formulas.vectors import FORMULAS
from fused_losses.triton_kernels.iteration import (
    ABSENT,
    compute_dtype,
    index_type,
    memory_order,
    position_arguments,
    turns,
)
from fused_losses.triton_kernels.launch import launch
from fused_losses.triton_kernels.memory import elements_of, load_numbers, row_starts, store, store_numbers
from fused_losses.triton_kernels.operators import EngineCall
from fused_losses.triton_kernels.reduce import finish, reduction_arguments, upstream_of_reduced


@triton.jit
def _load_vectors(tensors, sizes, position, c, mask, DTYPE: tl.constexpr):
    """Elements c of each vector, (ROWS, CHUNK); what the mask leaves out is undefined."""
    return [
        tl.load(elements_of(tensor, row_starts(tensor, sizes, position), c), mask=mask).to(DTYPE)
        for tensor in tensors
    ]


@triton.jit
def _store_vectors(tensors, sizes, position, c, mask, values):
    """Writes elements c, (ROWS, CHUNK), to each tensor that is not absent."""
    for k in tl.static_range(len(values)):
        if tensors[k][0] is not None:
            store(elements_of(tensors[k], row_starts(tensors[k], sizes, position), c), values[k], mask)


@triton.jit
def _select(mask, values, others):
    """Tuples of blocks: the values where the mask says so, else the others."""
    chosen = ()
    for k in tl.static_range(len(values)):
        chosen = chosen + (tl.where(mask, values[k], others[k]),)
    return chosen


@triton.jit(do_not_specialize=["margin", "p", "eps", "divisor"])
def vectors(
    operands,
    target,
    losses_upstream,
    gradients,
    losses,
    upstream_ptr,
    loss_ptr,
    partials_ptr,
    arrived_ptr,
    count: "i64",
    sizes,
    length,
    margin: "fp64",
    p: "fp64",
    eps: "fp64",
    divisor: "fp64",
    START: tl.constexpr,
    ADD: tl.constexpr,
    WHOLE: tl.constexpr,
    FINISH: tl.constexpr,
    DERIVATIVES: tl.constexpr,
    FLAGS: tl.constexpr,
    WANTS: tl.constexpr,
    READY: tl.constexpr,
    INDEX: tl.constexpr,
    DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    RESIDENT: tl.constexpr,
):
    """Walks over `count` positions, whose sizes and tensors are as in `iteration.position_arguments`.

    Takes:
        operands: The vectors, with an axis of `length` elements.
        target: A number for each position, or absent.
        losses_upstream: The upstream gradient of each loss, or absent.
        gradients: With the axis, as many as there are vectors; those that are absent are not wanted.
        losses: Where the loss of each position goes, or absent.
        upstream_ptr, loss_ptr, partials_ptr, arrived_ptr: See `reduce.reduction_arguments`.
        START, ADD, WHOLE, FINISH, DERIVATIVES, FLAGS: See `formulas.vectors.Formula`.
        WANTS: Whether any gradient is wanted.
        RESIDENT: A chunk holds a whole vector: read once, it stays in registers. Longer ones are read again
            for gradients, from their end, where the caches still hold them.
    """
    scale = upstream_of_reduced(upstream_ptr)
    if READY:
        if scale == 1:
            return
    divisor = scalar(divisor)
    scale = (scale / divisor).to(DTYPE)
    parameters = (scalar(margin), scalar(p), scalar(eps))

    chunks = tl.cdiv(length, CHUNK)
    total = tl.zeros((ROWS, 1), DTYPE)
    first, end, step = turns(count, ROWS, INDEX)
    for begin in range(first, end, step):
        position = begin + tl.arange(0, ROWS)[:, None]
        live = position < end
        c = tl.arange(0, CHUNK)[None, :]
        lanes = START(tl.zeros((ROWS, CHUNK), DTYPE), FLAGS)
        if RESIDENT:
            mask = live & (c < length)
            x = _load_vectors(operands, sizes, position, c, mask, DTYPE)
            lanes = _select(mask, ADD(x, lanes, parameters, FLAGS), lanes)
        else:
            for k in range(0, chunks):
                at = k * CHUNK + c
                mask = live & (at < length)
                x = _load_vectors(operands, sizes, position, at, mask, DTYPE)
                lanes = _select(mask, ADD(x, lanes, parameters, FLAGS), lanes)

        t = total
        if target[0] is not None:
            t = load_numbers(target, sizes, position, live, 0, DTYPE)
        slope = splat(scale, total)
        if losses_upstream[0] is not None:
            slope *= load_numbers(losses_upstream, sizes, position, live, 0, DTYPE)
        value, slopes = FINISH(WHOLE(lanes, FLAGS), t, slope, parameters, FLAGS)
        total += tl.where(live, value, 0.0)
        store_numbers(losses, sizes, position, live, value)

        # In place, a gradient overwrites its vector. Who stores an element has waited for the row's sums, and
        # so for all who read the row: tiles have more elements than threads, and none is read by two of them.
        if RESIDENT and WANTS:
            _store_vectors(gradients, sizes, position, c, mask, DERIVATIVES(slopes, x, parameters, FLAGS))
        elif WANTS:
            for k in range(0, chunks):
                at = (chunks - 1 - k) * CHUNK + c
                mask = live & (at < length)
                x = _load_vectors(operands, sizes, position, at, mask, DTYPE)
                _store_vectors(
                    gradients, sizes, position, at, mask, DERIVATIVES(slopes, x, parameters, FLAGS)
                )
    if loss_ptr is not None:
        finish(tl.sum(total), divisor, loss_ptr, partials_ptr, arrived_ptr)


def run(call: EngineCall) -> None:
    """Writes what is asked for of a loss of vectors."""
    formula = FORMULAS[call.loss.name]
    assert call.extra is not None
    operands = [call.input, call.target, call.extra]
    shape = broadcast(*operands)
    positions, length, axis = shape[:-1], shape[-1], len(shape) - 1

    with_axis = [x.expand(shape) for x in operands[: formula.vectors]]
    # The third operand of a pair is a number for each position, in a last dimension of size 1.
    target: list[Tensor | None] = [x.expand((*positions, 1))[..., 0] for x in operands[formula.vectors :]]
    sizes, arguments, numbers = position_arguments(
        shape,
        axis,
        memory_order(shape, call.input),
        [*with_axis, *call.gradients[: formula.vectors]],
        [call.losses_upstream, call.losses, *target],
    )
    losses_upstream, losses, *targets = numbers

    distance, swap, margin, p, eps = _parameters(length, *call.options[0])
    dtype = compute_dtype(*operands)
    tile, resident = tiling.for_vectors(
        length, is_float64=dtype is tl.float64, has_powers=distance == distances.POWER.value
    )
    count = positions.numel()
    programs = tile.programs(count, call.input.device)
    launch(
        vectors,
        programs,
        call.input.device,
        {
            "operands": tuple(arguments[: formula.vectors]),
            "target": targets[0] if targets else ABSENT,
            "losses_upstream": losses_upstream,
            "gradients": tuple(arguments[formula.vectors :]),
            "losses": losses,
            **reduction_arguments(call, programs),
            "count": count,
            "sizes": sizes,
            "length": length,
            "margin": margin,
            "p": p,
            "eps": eps,
            "divisor": float(count) if call.reduction == Reduction.MEAN else 1.0,
        },
        START=formula.start,
        ADD=formula.add,
        WHOLE=formula.whole,
        FINISH=formula.finish,
        DERIVATIVES=formula.derivatives,
        FLAGS=(distance, swap),
        WANTS=call.wants_gradients,
        READY=call.ready,
        INDEX=index_type(count),
        DTYPE=dtype,
        ROWS=tile.rows,
        CHUNK=tile.columns,
        RESIDENT=resident,
        num_warps=tile.num_warps,
        # What formulas say twice must be the same bits in every kernel, whatever else it computes.
        enable_fp_fusion=False,
    )


def _parameters(
    length: int,
    margin: float,
    p: float | None = None,
    eps: float = 0.0,
    swap: float = 0.0,
    cosine: float = 0.0,
) -> tuple[int, bool, float, float, float]:
    """What is compiled in, the distance and `swap`; and what is not: margin, p and eps.

    Arguments are the length of vectors, and the loss's parameters, in the registry's order; `cosine` is 1 for
    a triplet of cosine distances.
    """
    if p is None or cosine:
        return distances.COSINE.value, bool(swap), margin, 0.0, 0.0
    if length == 1 and math.isfinite(p):
        return distances.MANHATTAN.value, bool(swap), margin, p, eps
    distances_of_p = {
        2.0: distances.EUCLIDEAN,
        1.0: distances.MANHATTAN,
        float("inf"): distances.EXTREME,
        float("-inf"): distances.EXTREME,
    }
    return distances_of_p.get(p, distances.POWER).value, bool(swap), margin, p, eps

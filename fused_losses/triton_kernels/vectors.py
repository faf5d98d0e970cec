"""The engine of losses of distances between vectors: sums along rows, derivatives while rows are at hand."""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fused_losses.shapes import broadcast
from fused_losses.triton_kernels import tiling
from fused_losses.triton_kernels.formulas import distances
from fused_losses.triton_kernels.formulas.math import scalar, splat
from fused_losses.triton_kernels.formulas.vectors import FORMULAS
from fused_losses.triton_kernels.iteration import Strides, index_type, merged, offset_of, turns
from fused_losses.triton_kernels.launch import launch
from fused_losses.triton_kernels.operators import Call, check_shape
from fused_losses.triton_kernels.reduce import finish, scratch, upstream_of_reduced

MEAN = 1


@triton.jit
def _place(vector, sizes, position, c):
    """Of elements c of rows."""
    return vector[0] + offset_of(position, sizes, vector[2]) + c.to(tl.int64) * vector[1]


@triton.jit
def _load_vectors(vectors, sizes, position, c, mask, T: tl.constexpr):
    return [tl.load(_place(vector, sizes, position, c), mask=mask).to(T) for vector in vectors]


@triton.jit
def _store(place, value, mask):
    dtype: tl.constexpr = place.dtype.element_ty
    if value.dtype == tl.float64 and dtype != tl.float64:
        # By way of float32: no device converts float64 to 16 bits in one step.
        tl.store(place, value.to(tl.float32).to(dtype), mask=mask)
    else:
        tl.store(place, value.to(dtype), mask=mask)


@triton.jit
def _store_vectors(vectors, sizes, position, c, mask, values):
    for k in tl.static_range(len(values)):
        if vectors[k][0] is not None:
            _store(_place(vectors[k], sizes, position, c), values[k], mask)


@triton.jit
def _select(mask, values, others):
    chosen = ()
    for k in tl.static_range(len(values)):
        chosen = chosen + (tl.where(mask, values[k], others[k]),)
    return chosen


@triton.jit(do_not_specialize=["margin", "p", "eps", "divisor"])
def vectors(
    operands,
    target,
    upstream,
    gradients,
    losses,
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
    T: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    RESIDENT: tl.constexpr,
):
    """A vector is a pointer (None: absent), its stride along its elements, and its strides along rows.

    What has one number per row lacks the first stride; an upstream gradient of the reduced loss has None
    instead of strides.
    RESIDENT rows fit into a chunk: read once, they stay in registers. Others are read again if anyone WANTS
    gradients, from their end, where the caches still hold them.
    """
    scale = upstream_of_reduced(upstream)
    if READY:
        if scale == 1:
            return
    divisor = scalar(divisor)
    scale = (scale / divisor).to(T)
    parameters = (scalar(margin), scalar(p), scalar(eps))

    chunks = tl.cdiv(length, CHUNK)
    total = tl.zeros((ROWS, 1), T)
    first, end, step = turns(count, ROWS, INDEX)
    for begin in range(first, end, step):
        position = begin + tl.arange(0, ROWS)[:, None]
        live = position < end
        c = tl.arange(0, CHUNK)[None, :]
        lanes = START(tl.zeros((ROWS, CHUNK), T), FLAGS)
        if RESIDENT:
            mask = live & (c < length)
            x = _load_vectors(operands, sizes, position, c, mask, T)
            lanes = _select(mask, ADD(x, lanes, parameters, FLAGS), lanes)
        else:
            for k in range(0, chunks):
                at = k * CHUNK + c
                mask = live & (at < length)
                x = _load_vectors(operands, sizes, position, at, mask, T)
                lanes = _select(mask, ADD(x, lanes, parameters, FLAGS), lanes)

        t = total
        if target[0] is not None:
            t = tl.load(target[0] + offset_of(position, sizes, target[1]), mask=live, other=0).to(T)
        slope = splat(scale, total)
        if upstream[1] is not None:
            slope *= tl.load(upstream[0] + offset_of(position, sizes, upstream[1]), mask=live, other=0).to(T)
        value, slopes = FINISH(WHOLE(lanes, FLAGS), t, slope, parameters, FLAGS)
        total += tl.where(live, value, 0.0)
        if losses[0] is not None:
            _store(losses[0] + offset_of(position, sizes, losses[1]), value, live)

        # In place, a gradient overwrites its vector. Who stores an element has waited for the row's sums, and
        # so for all who read the row: tiles have more elements than threads, and none is read by two of them.
        if RESIDENT and WANTS:
            _store_vectors(gradients, sizes, position, c, mask, DERIVATIVES(slopes, x, parameters, FLAGS))
        elif WANTS:
            for k in range(0, chunks):
                at = (chunks - 1 - k) * CHUNK + c
                mask = live & (at < length)
                x = _load_vectors(operands, sizes, position, at, mask, T)
                _store_vectors(
                    gradients, sizes, position, at, mask, DERIVATIVES(slopes, x, parameters, FLAGS)
                )
    if loss_ptr is not None:
        finish(tl.sum(total), divisor, loss_ptr, partials_ptr, arrived_ptr)


def run(call: Call) -> None:
    """The engine."""
    formula = FORMULAS[call.loss.name]
    operands = [x for x in (call.input, call.target, call.extra) if x is not None]
    if call.weight is not None:
        raise RuntimeError("fused_losses: losses of vectors take no weight")
    if len(operands) < 3 or any(x.dim() == 0 for x in operands):
        raise RuntimeError("fused_losses: expected three operands with vectors in their last dimension")
    shape = broadcast(*operands)
    of_each = None if call.reduction else call.upstream
    check_shape(shape, *call.gradients)
    check_shape(shape[:-1], call.losses, of_each)

    count, length = shape[:-1].numel(), shape[-1]
    with_length = (*operands[: formula.vectors], *call.gradients[: formula.vectors])
    targets = [x.expand((*shape[:-1], x.shape[-1])) for x in operands[formula.vectors :]]
    numbers = (*targets, of_each, call.losses)
    sizes, bundles = _bundles(shape, call.input, with_length, numbers)
    *targets, upstream, losses = bundles[len(with_length) :]
    if call.reduction and call.upstream is not None:
        upstream = (call.upstream, None)

    distance, swap, margin, p, eps = _parameters(*call.options[0])
    wide = any(x.dtype is torch.float64 for x in operands)
    tiles, resident = tiling.for_vectors(length, wide=wide, powers=distance == distances.POWER.value)
    programs = tiles.programs(triton.cdiv(count, tiles.rows), call.input.device)
    partials, arrived = (None, None) if call.reduced is None else scratch(programs, call.input.device)
    launch(
        vectors,
        programs,
        call.input.device,
        tuple(bundles[: formula.vectors]),
        targets[0] if targets else (None,),
        upstream,
        tuple(bundles[formula.vectors : len(with_length)]),
        losses,
        call.reduced,
        partials,
        arrived,
        count,
        sizes,
        length,
        margin,
        p,
        eps,
        float(count) if call.reduction == MEAN else 1.0,
        START=formula.start,
        ADD=formula.add,
        WHOLE=formula.whole,
        FINISH=formula.finish,
        DERIVATIVES=formula.derivatives,
        FLAGS=(distance, swap),
        WANTS=call.wants_gradients,
        READY=call.ready,
        INDEX=index_type(count),
        T=tl.float64 if wide else tl.float32,
        ROWS=tiles.rows,
        CHUNK=tiles.columns,
        RESIDENT=resident,
        num_warps=tiles.num_warps,
        # What formulas say twice must be the same bits in every kernel, whatever else it computes.
        enable_fp_fusion=False,
    )


def _parameters(
    margin: float, p: float | None = None, eps: float = 0.0, swap: float = 0.0, cosine: float = 0.0
) -> tuple[int, bool, float, float, float]:
    """What is compiled in, the distance and `swap`; and what is not: margin, p, eps."""
    if p is None or cosine:
        return distances.COSINE.value, bool(swap), margin, 0.0, 0.0
    named = {
        2.0: distances.EUCLIDEAN,
        1.0: distances.MANHATTAN,
        float("inf"): distances.EXTREME,
        float("-inf"): distances.EXTREME,
    }
    return named.get(p, distances.POWER).value, bool(swap), margin, p, eps


def _bundles(
    shape: torch.Size, leader: Tensor, vectors: Sequence[Tensor | None], numbers: Sequence[Tensor | None]
) -> tuple[Strides, list[Any]]:
    """The sizes of a walk over rows, in the order of `leader` in memory, and what the kernel takes."""
    lies = leader.stride()
    if leader.shape != shape or not torch.ops.aten.is_non_overlapping_and_dense(leader):
        lies = torch.empty(shape, device="meta").stride()
    order = sorted(range(len(shape) - 1), key=lambda d: -lies[d])
    tensors = [*(None if x is None else x.expand(shape) for x in vectors), *numbers]
    strides = [[x.stride(d) for d in order] for x in tensors if x is not None]
    sizes, found = merged([shape[d] for d in order], strides)
    remaining = iter(found)
    bundles: list[Any] = []
    for k, x in enumerate(tensors):
        if x is None:
            bundles.append((None, None))
        elif k < len(vectors):
            bundles.append((x, x.stride(-1), next(remaining)))
        else:
            bundles.append((x, next(remaining)))
    return sizes, bundles

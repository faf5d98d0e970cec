"""The engine of losses of elements: operands in, value and derivatives out, reduced on the way.

`run` makes a launch of what it is asked for; the kernel `pointwise` loads a block of elements of each
operand, calls the loss's formula (`FORMULAS`, from `formulas/`), and stores what is wanted of the value and
the derivatives.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fused_losses.call import Reduction
from fused_losses.registry import Loss
from fused_losses.shapes import broadcast
from fused_losses.triton_kernels import tiling
from fused_losses.triton_kernels.elements import (
    element_walk,
    lanes,
    load_tiles,
    store_elements,
    widened,
)
from fused_losses.triton_kernels.formulas import binary, focal, likelihood, margin, regression
from fused_losses.triton_kernels.formulas.math import scalar, splat
from fused_losses.triton_kernels.formulas.pointwise import MOST_NUMBERS, Formula
from fused_losses.triton_kernels.iteration import compute_dtype, index_type, turns
from fused_losses.triton_kernels.launch import launch
from fused_losses.triton_kernels.operators import EngineCall
from fused_losses.triton_kernels.reduce import (
    finish,
    known_divisor,
    reduction_arguments,
    upstream_of_reduced,
)

FORMULAS: dict[str, Formula] = {
    **regression.FORMULAS,
    **binary.FORMULAS,
    **focal.FORMULAS,
    **likelihood.FORMULAS,
    **margin.FORMULAS,
}


@triton.jit(
    do_not_specialize=["number_0", "number_1", "number_2", "number_3", "ignored", "divisor"], debug=True
)
def pointwise(
    operands,
    factors,
    losses,
    gradients,
    upstream_ptr,
    loss_ptr,
    partials_ptr,
    arrived_ptr,
    divisor_ptr,
    count: "i64",
    sizes,
    multipliers,
    shifts,
    number_0: "fp64",
    number_1: "fp64",
    number_2: "fp64",
    number_3: "fp64",
    ignored: "fp64",
    divisor: "fp64",
    TERMS: tl.constexpr,
    HOLDS: tl.constexpr,
    REFUSAL: tl.constexpr,
    SCALED: tl.constexpr,
    FLAGS: tl.constexpr,
    ROUNDED: tl.constexpr,
    IGNORES: tl.constexpr,
    READY: tl.constexpr,
    INDEX: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
    PACK: tl.constexpr,
):
    """Walks over `count` elements, whose sizes and tensors are as in `elements.element_walk`.

    Takes:
        operands: Input, target and the third operand.
        factors: The weight of each element, and the upstream gradient of each loss; absent where there is
            none.
        losses: Where the loss of each element goes, if it is not absent.
        gradients: Three tensors; those that are absent are not wanted.
        upstream_ptr, loss_ptr, partials_ptr, arrived_ptr: See `reduce.reduction_arguments`.
        divisor, divisor_ptr: See `reduce.known_divisor`.
        ignored: If the call IGNORES elements, those whose target equals this.
    """
    scale = upstream_of_reduced(upstream_ptr)
    if READY:
        if scale == 1:
            return
    divisor = known_divisor(divisor, divisor_ptr)
    scale = scale / divisor
    numbers = (scalar(number_0), scalar(number_1), scalar(number_2), scalar(number_3))
    walk = (sizes, multipliers, shifts)
    total = tl.zeros(lanes(BLOCK, PACK).shape, DTYPE)
    first, end, step = turns(count, TILES * BLOCK, INDEX)
    whole = end // (TILES * BLOCK) * (TILES * BLOCK)
    # Turns of whole tiles; and what is left of the last turn, tile by tile, by the program whose turn it is.
    for LEFT in tl.static_range(2):
        if LEFT:
            begins = tl.where(whole % step == first, whole, end)
            limit = end
        else:
            begins = first
            limit = None
        for begin in range(begins, end if LEFT else whole, BLOCK if LEFT else step):
            # All reads come before the first use.
            inputs = load_tiles(operands[0], walk, begin, limit, BLOCK, PACK, 1 if LEFT else TILES)
            targets = load_tiles(operands[1], walk, begin, limit, BLOCK, PACK, 1 if LEFT else TILES)
            thirds = load_tiles(operands[2], walk, begin, limit, BLOCK, PACK, 1 if LEFT else TILES)
            weights = load_tiles(factors[0], walk, begin, limit, BLOCK, PACK, 1 if LEFT else TILES)
            upstreams = load_tiles(factors[1], walk, begin, limit, BLOCK, PACK, 1 if LEFT else TILES)
            for tile in tl.static_range(1 if LEFT else TILES):
                x = widened(operands[0], inputs[tile], DTYPE, BLOCK, PACK)
                t = widened(operands[1], targets[tile], DTYPE, BLOCK, PACK)
                third = widened(operands[2], thirds[tile], DTYPE, BLOCK, PACK)
                weight = widened(factors[0], weights[tile], DTYPE, BLOCK, PACK)
                upstream = widened(factors[1], upstreams[tile], DTYPE, BLOCK, PACK)
                value, derivatives = TERMS(x, t, third, numbers, FLAGS, ROUNDED)
                slope = splat(scale, x)
                if weight is not None:
                    value *= weight
                    slope *= weight
                if upstream is not None:
                    slope *= upstream
                counts = None
                if LEFT:
                    counts = begin + lanes(BLOCK, PACK) < end
                if IGNORES:
                    kept = t != splat(ignored, t)
                    counts = counts & kept if LEFT else kept
                if counts is not None:
                    value = tl.where(counts, value, 0.0)
                total += value
                at = begin + tile * BLOCK
                store_elements(losses, walk, at, limit, value, BLOCK, PACK)
                for k in tl.static_range(len(derivatives)):
                    gradient = SCALED(k, derivatives[k], slope, x, t, third, FLAGS)
                    if IGNORES:
                        gradient = tl.where(counts, gradient, 0.0)
                    store_elements(gradients[k], walk, at, limit, gradient, BLOCK, PACK)
                if REFUSAL is not None:
                    held = HOLDS(x, t, third)
                    if counts is not None:
                        held = held | ~counts
                    holds = holds & held if tile else held
            if REFUSAL is not None and (loss_ptr is not None or losses[0] is not None):
                # Once in a turn: the threads of a program wait for each other here.
                tl.device_assert(holds, REFUSAL)
    if loss_ptr is not None:
        finish(tl.sum(total), divisor, loss_ptr, partials_ptr, arrived_ptr)


def run(call: EngineCall) -> None:
    """Writes what is asked for of a pointwise loss."""
    formula = FORMULAS[call.loss.name]
    parameters, ignored, normalizer = call.options
    flags, numbers = _by_kind(call.loss, parameters)
    if len(numbers) > MOST_NUMBERS:
        raise RuntimeError(f"fused_losses: a pointwise loss has at most {MOST_NUMBERS} float parameters")
    operands = (call.input, call.target, call.extra)
    factors = (call.weight, call.losses_upstream)
    shape = broadcast(*operands)
    walk = element_walk(shape, call.input, (*operands, *factors, call.losses, *call.gradients))
    arguments = walk.tensors
    count = shape.numel()
    divisor, divisor_on_device = _divisor(call, ignored, normalizer, shape)
    dtype = compute_dtype(*operands)
    tile, tiles = tiling.for_pointwise([x.element_size() for x in (*operands, *factors) if x is not None])
    programs = tiling.pointwise_programs(count, tile.rows * tiles)
    # A float32 loss is as exact as float32, whatever the operands are, as torch's is under autocast.
    rounded = tuple(
        all(x.element_size() == 2 for x in tensors if x is not None)
        for tensors in ((*operands, call.value, *call.gradients), (call.input, *call.gradients))
    )
    launch(
        pointwise,
        programs,
        call.input.device,
        {
            "operands": tuple(arguments[:3]),
            "factors": tuple(arguments[3:5]),
            "losses": arguments[5],
            "gradients": tuple(arguments[6:]),
            **reduction_arguments(call, programs),
            "divisor_ptr": divisor_on_device,
            "count": count,
            "sizes": walk.sizes,
            "multipliers": walk.multipliers,
            "shifts": walk.shifts,
            **{f"number_{k}": numbers[k] if k < len(numbers) else 0.0 for k in range(MOST_NUMBERS)},
            "ignored": 0.0 if ignored is None else ignored,
            "divisor": divisor,
        },
        TERMS=formula.terms,
        HOLDS=formula.holds,
        REFUSAL=formula.refusal,
        SCALED=formula.scaled,
        FLAGS=flags,
        ROUNDED=rounded,
        IGNORES=ignored is not None,
        READY=call.ready,
        INDEX=index_type(count),
        DTYPE=dtype,
        BLOCK=tile.rows,
        TILES=tiles,
        PACK=walk.pack,
        num_warps=tile.num_warps,
        maxnreg=tiling.POINTWISE_REGISTERS,
    )


def _by_kind(loss: Loss, parameters: Sequence[float]) -> tuple[tuple[bool, ...], list[float]]:
    """A loss's parameters: those that are flags, and the numbers."""
    defaults = loss.parameters.values()
    pairs = list(zip(parameters, defaults, strict=True))
    flags = tuple(bool(value) for value, default in pairs if isinstance(default, bool))
    return flags, [value for value, default in pairs if not isinstance(default, bool)]


def _divisor(call: EngineCall, ignored: float | None, normalizer: Tensor | None, shape: torch.Size) -> Any:
    """What the sum is divided by: a number, and a tensor, (), float64, where only the device knows it."""
    if call.reduction == Reduction.BATCH_MEAN:
        return float(call.input.shape[0]) if call.input.dim() else 1.0, None
    if call.reduction != Reduction.MEAN:
        return 1.0, None
    if normalizer is not None:
        return 0.0, normalizer
    if call.loss.mean_over_weights and call.weight is not None:
        # torch sums the weights themselves, also where they are broadcast over a larger target.
        return 0.0, torch.sum(call.weight, dtype=torch.float64)
    if ignored is not None:
        kept = (call.target != ignored).expand(shape)
        return 0.0, torch.sum(kept, dtype=torch.float64)
    return float(shape.numel()), None

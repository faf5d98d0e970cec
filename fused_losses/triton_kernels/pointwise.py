"""The engine of losses of elements: operands in, value and derivatives out, reduced on the way."""

from typing import Any

import torch
import triton
import triton.language as tl

from fused_losses.shapes import broadcast
from fused_losses.triton_kernels import tiling
from fused_losses.triton_kernels.formulas import binary, likelihood, margin, regression
from fused_losses.triton_kernels.formulas.math import scalar, splat
from fused_losses.triton_kernels.formulas.pointwise import Formula
from fused_losses.triton_kernels.iteration import elementwise, index_type, offset_of, turns
from fused_losses.triton_kernels.launch import launch
from fused_losses.triton_kernels.operators import Call, check_shape
from fused_losses.triton_kernels.reduce import finish, scratch

FORMULAS: dict[str, Formula] = {
    **regression.FORMULAS,
    **binary.FORMULAS,
    **likelihood.FORMULAS,
    **margin.FORMULAS,
}

MEAN, BATCH_MEAN = 1, 3


@triton.jit
def _load(pointer, index, mask, sizes, strides, T: tl.constexpr):
    """Elements of an operand, or None where there is none."""
    if pointer is None:
        return
    else:
        return tl.load(pointer + offset_of(index, sizes, strides), mask=mask).to(T)


@triton.jit
def _store(pointer, index, mask, sizes, strides, value):
    if pointer is not None:
        tl.store(pointer + offset_of(index, sizes, strides), value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["number", "ignored", "divisor"], debug=True)
def pointwise(
    operands,
    operand_strides,
    factors,
    factor_strides,
    results,
    result_strides,
    loss_ptr,
    partials_ptr,
    arrived_ptr,
    upstream_ptr,
    divisor_ptr,
    count: "i64",
    sizes,
    number: "fp64",
    ignored: "fp64",
    divisor: "fp64",
    TERMS: tl.constexpr,
    IN_DOMAIN: tl.constexpr,
    OUTSIDE: tl.constexpr,
    FLAGS: tl.constexpr,
    IGNORES: tl.constexpr,
    READY: tl.constexpr,
    INDEX: tl.constexpr,
    T: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """All that is written is optional: `results` are losses and three gradients, the loss is reduced."""
    divisor = scalar(divisor)
    if divisor_ptr is not None:
        divisor = tl.load(divisor_ptr).to(tl.float64)
    scale = 1 / divisor
    if upstream_ptr is not None:
        upstream = tl.load(upstream_ptr).to(tl.float64)
        if READY:
            if upstream == 1:
                return
        scale *= upstream
    total = tl.zeros((BLOCK,), T)
    first, end, step = turns(count, BLOCK, INDEX)
    for begin in range(first, end, step):
        i = begin + tl.arange(0, BLOCK)
        mask = i < end
        x = _load(operands[0], i, mask, sizes, operand_strides[0], T)
        t = _load(operands[1], i, mask, sizes, operand_strides[1], T)
        third = _load(operands[2], i, mask, sizes, operand_strides[2], T)
        counts = mask
        if IGNORES:
            counts = mask & (t != splat(ignored, t))
        if IN_DOMAIN is not None:
            tl.device_assert(IN_DOMAIN(x, t, third) | ~counts, OUTSIDE)
        value, of_input, of_target, of_third = TERMS(x, t, third, number, FLAGS)
        slope = splat(scale, x)
        for k in tl.static_range(2):
            factor = _load(factors[k], i, mask, sizes, factor_strides[k], T)
            if factor is not None:
                value *= factor
                slope *= factor
        value = tl.where(counts, value, 0.0)
        total += value
        _store(results[0], i, mask, sizes, result_strides[0], value)
        if IGNORES:
            of_input = tl.where(counts, of_input * slope, 0.0)
            of_target = tl.where(counts, of_target * slope, 0.0)
            of_third = tl.where(counts, of_third * slope, 0.0)
        else:
            of_input *= slope
            of_target *= slope
            of_third *= slope
        _store(results[1], i, mask, sizes, result_strides[1], of_input)
        _store(results[2], i, mask, sizes, result_strides[2], of_target)
        _store(results[3], i, mask, sizes, result_strides[3], of_third)
    if loss_ptr is not None:
        finish(tl.sum(total), divisor, loss_ptr, partials_ptr, arrived_ptr)


def run(call: Call) -> None:
    """The engine."""
    formula = FORMULAS[call.loss.name]
    parameters, ignored = call.options
    operands = (call.input, call.target, call.extra)
    # Upstream gradients of each loss are factors; one of the reduced loss goes to the scale.
    factors = (call.weight, None if call.reduction else call.upstream)
    results = (call.losses, *call.gradients)
    shape = broadcast(*operands, *factors)
    check_shape(shape, *results)
    sizes, strides = elementwise(shape, call.input, (*operands, *factors, *results))
    count = shape.numel()
    divisor, on_device = _divisor(call, formula, ignored, shape)
    wide = any(x is not None and x.dtype is torch.float64 for x in operands)
    tiles = tiling.for_pointwise(8 if wide else max(x.element_size() for x in operands if x is not None))
    programs = tiles.programs(triton.cdiv(count, tiles.columns), call.input.device)
    partials, arrived = (None, None) if call.reduced is None else scratch(programs, call.input.device)
    numbers = parameters[formula.flags :]
    launch(
        pointwise,
        programs,
        call.input.device,
        operands,
        tuple(strides[:3]),
        factors,
        tuple(strides[3:5]),
        results,
        tuple(strides[5:]),
        call.reduced,
        partials,
        arrived,
        call.upstream if call.reduction else None,
        on_device,
        count,
        sizes,
        numbers[0] if numbers else 0.0,
        0.0 if ignored is None else ignored,
        divisor,
        TERMS=formula.terms,
        IN_DOMAIN=formula.in_domain,
        OUTSIDE=formula.outside,
        FLAGS=tuple(bool(flag) for flag in parameters[: formula.flags]),
        IGNORES=ignored is not None,
        READY=call.ready,
        INDEX=index_type(count),
        T=tl.float64 if wide else tl.float32,
        BLOCK=tiles.columns,
        num_warps=tiles.num_warps,
    )


def _divisor(call: Call, formula: Formula, ignored: float | None, shape: torch.Size) -> Any:
    """What the sum is divided by, as a number, or as a tensor where only the device knows it."""
    count = float(shape.numel())
    if call.reduction == BATCH_MEAN:
        return float(call.input.shape[0]) if call.input.dim() else 1.0, None
    if call.reduction != MEAN:
        return 1.0, None
    if formula.mean_over_weight and call.weight is not None:
        # torch sums the weights themselves, also where they are broadcast over a larger target.
        return 0.0, torch.sum(call.weight, dtype=torch.float64)
    if ignored is not None:
        kept = (call.target != ignored).expand(shape)
        return 0.0, torch.sum(kept, dtype=torch.float64)
    return count, None

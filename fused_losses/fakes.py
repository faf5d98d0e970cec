"""What the operators return: shapes, dtypes and strides, for fake tensors and for the kernels in Triton."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fused_losses.call import accumulate_dtype
from fused_losses.operator_checks import (
    Arguments,
    Checks,
    check_backward,
    check_forward,
    check_scale,
    describe,
)
from fused_losses.registry import (
    ARGMAX,
    EXTRA_GRADIENT,
    INPUT_GRADIENT,
    STATISTICS,
    TARGET_GRADIENT,
    Family,
    Loss,
)
from fused_losses.shapes import broadcast, losses_shape, positions


def _like(tensor: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """An empty tensor, laid out as the given one if that is dense and of the same shape, else contiguous."""
    if tensor.shape == shape and torch.ops.aten.is_non_overlapping_and_dense(tensor):
        return tensor.new_empty_strided(shape, tensor.stride(), dtype=dtype)
    return tensor.new_empty(shape, dtype=dtype)


def _gradients(family: Family, operands: tuple[Tensor | None, ...], gradients: int) -> list[Tensor]:
    """The gradients that are asked for, in the order of operands, each in its operand's dtype."""
    input, target, _, extra = operands
    assert input is not None
    if family == "pointwise" or family == "vectors":
        shape = broadcast(*operands)
        places = [(input, shape)] * 3
    else:
        places = [(x, x.shape) for x in (input, target) if x is not None]
    bits = (INPUT_GRADIENT, TARGET_GRADIENT, EXTRA_GRADIENT)
    return [
        _like(place, shape, operand.dtype)
        for bit, operand, (place, shape) in zip(bits, (input, target, extra), places, strict=False)
        if gradients & bit and operand is not None
    ]


def results_of(loss: Loss) -> tuple[Callable[..., Any], ...]:
    """What makes the results of NAME, NAME_ and NAME_backward, for arguments that have been checked."""

    def forward(*arguments: Any) -> list[Tensor]:
        operands, (*_, reduction, dtype, gradients) = arguments[:4], arguments[4:]
        input: Tensor = operands[0]
        dtype = dtype or input.dtype
        if reduction:
            result = input.new_empty((), dtype=dtype)
        else:
            result = _like(input, losses_shape(loss.family, *operands), dtype)
        kept = []
        if loss.has_statistics and gradients & STATISTICS:
            terms = arguments[6]
            numbers = 3 if terms and terms[1] else 2
            kept.append(
                input.new_empty((numbers, positions(input).numel()), dtype=accumulate_dtype(input.dtype))
            )
        if loss.has_statistics and gradients & ARGMAX:
            kept.append(input.new_empty(positions(input), dtype=torch.int64))
        return [result, *kept, *_gradients(loss.family, operands, gradients)]

    def forward_inplace(*arguments: Any) -> list[Tensor]:
        """The input's gradient is not returned: it is in the input."""
        return forward(*arguments[:-1], arguments[-1] & ~INPUT_GRADIENT)

    def backward(upstream: Tensor, *arguments: Any) -> list[Tensor]:
        operands = arguments[:4]
        if loss.family == "softmax":  # the fourth are statistics
            operands = (*operands[:3], None)
        return _gradients(loss.family, operands, arguments[-1])

    return forward, forward_inplace, backward


def fakes_of(loss: Loss) -> tuple[Callable[..., Any], ...]:
    """The fakes of a loss's four operators, which refuse what kernels refuse but for memory."""
    make_results, make_results_inplace, make_gradients = results_of(loss)

    def forward(*arguments: Any) -> list[Tensor]:
        check_forward(loss, *arguments)
        results: list[Tensor] = make_results(*arguments)
        return results

    def forward_inplace(*arguments: Any) -> list[Tensor]:
        call = check_forward(loss, *arguments)
        check_layout(Checks(loss.name), "input", call.input, gradient_layouts(call, INPUT_GRADIENT)[0])
        results: list[Tensor] = make_results_inplace(*arguments)
        return results

    def backward(upstream: Tensor, *arguments: Any) -> list[Tensor]:
        check_backward(loss, upstream, *arguments)
        gradients: list[Tensor] = make_gradients(upstream, *arguments)
        return gradients

    def backward_into(into: list[Tensor], ready: bool, upstream: Tensor, *arguments: Any) -> None:
        check_into(check_backward(loss, upstream, *arguments), into)

    return forward, forward_inplace, backward, backward_into


def fake_scale(gradient: Tensor, factor: Tensor) -> None:
    """The fake of scale_, which only changes what is there."""
    check_scale(gradient, factor)


def gradient_layouts(call: Arguments, gradients: int) -> list[Tensor]:
    """Meta tensors that lie as the gradients do, in the order of operands."""
    operands = (call.input, call.target, None, None if call.loss.family == "softmax" else call.extra)
    meta = tuple(None if x is None else x.to("meta") for x in operands)
    return _gradients(call.loss.family, meta, gradients)


def check_into(call: Arguments, into: list[Tensor]) -> None:
    """Checks that there is a tensor for each gradient, and lies as it does."""
    checks = Checks(call.loss.name)
    layouts = gradient_layouts(call, call.gradients)
    if len(into) != len(layouts):
        checks.refuse("into", f"hold a tensor for each bit of gradients, {len(layouts)}", len(into))
    checks.devices({"input": call.input, **{f"into[{k}]": x for k, x in enumerate(into)}})
    for tensor, layout in zip(into, layouts, strict=True):
        check_layout(checks, "into", tensor, layout)


def check_layout(checks: Checks, name: str, tensor: Tensor, layout: Tensor) -> None:
    """Checks that a tensor to write to lies as the gradient does."""
    same = tensor.shape == layout.shape and tensor.dtype is layout.dtype
    # Where there are no elements, or no second one in a dimension, strides say nothing.
    steps = zip(tensor.shape, tensor.stride(), layout.stride(), strict=False)
    if not same or (tensor.numel() and any(size != 1 and step != right for size, step, right in steps)):
        checks.refuse(
            name,
            f"lie as the gradient that is written to it, {describe(layout)} and strides {layout.stride()}",
            f"{describe(tensor)} and strides {tensor.stride()}",
        )

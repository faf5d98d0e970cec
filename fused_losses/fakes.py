"""What the operators return for fake tensors: shapes, dtypes and strides, and nothing computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

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


def fakes_of(loss: Loss) -> tuple[Callable[..., Any], ...]:
    """The fakes of a loss's four operators, in their order."""

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
            accumulate_dtype = torch.float64 if input.dtype is torch.float64 else torch.float32
            terms = arguments[6]
            numbers = 3 if terms and terms[1] else 2
            kept.append(input.new_empty((numbers, positions(input).numel()), dtype=accumulate_dtype))
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

    return forward, forward_inplace, backward, nothing


def nothing(*arguments: Any) -> None:
    """For operators that only change what is there."""

"""What the operators return for fake tensors: shapes, dtypes and strides, and nothing computed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fused_losses.registry import Loss

INPUT_GRADIENT = 1
TARGET_GRADIENT = 2
STATISTICS = 4


def _like(tensor: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """Laid out as the tensor is, if that is dense and of the same shape, else contiguous."""
    if tensor.shape == shape and torch.ops.aten.is_non_overlapping_and_dense(tensor):
        return tensor.new_empty_strided(shape, tensor.stride(), dtype=dtype)
    return tensor.new_empty(shape, dtype=dtype)


def _pointwise_shape(*tensors: Tensor | None) -> torch.Size:
    shape: torch.Size = torch.broadcast_shapes(*(t.shape for t in tensors if t is not None))
    return shape


def _pointwise_gradients(input: Tensor, target: Tensor, shape: torch.Size, gradients: int) -> list[Tensor]:
    wanted = []
    if gradients & INPUT_GRADIENT:
        wanted.append(_like(input, shape, input.dtype))
    if gradients & TARGET_GRADIENT:
        wanted.append(_like(input, shape, target.dtype))
    return wanted


def _pointwise_forward(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    extra: Tensor | None,
    parameters: list[float],
    ignore_index: float | None,
    reduction: int,
    dtype: torch.dtype | None,
    gradients: int,
) -> list[Tensor]:
    shape = _pointwise_shape(input, target, weight, extra)
    dtype = dtype or input.dtype
    loss = input.new_empty((), dtype=dtype) if reduction else _like(input, shape, dtype)
    return [loss, *_pointwise_gradients(input, target, shape, gradients)]


def _pointwise_backward(upstream: Tensor, input: Tensor, target: Tensor, *arguments: Any) -> list[Tensor]:
    shape = _pointwise_shape(input, target, *arguments[:2])
    return _pointwise_gradients(input, target, shape, arguments[-1])


def _softmax_gradients(input: Tensor, target: Tensor, gradients: int) -> list[Tensor]:
    wanted = []
    if gradients & INPUT_GRADIENT:
        wanted.append(_like(input, input.shape, input.dtype))
    if gradients & TARGET_GRADIENT:
        wanted.append(_like(target, target.shape, target.dtype))
    return wanted


def _softmax_forward(
    has_statistics: bool,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    reduction: int,
    dtype: torch.dtype | None,
    gradients: int,
) -> list[Tensor]:
    positions = input.shape[:1] + input.shape[2:] if input.dim() > 1 else input.shape[:0]
    loss = input.new_empty(() if reduction else positions, dtype=dtype or input.dtype)
    kept = []
    if has_statistics and gradients & STATISTICS:
        wide = torch.float64 if input.dtype is torch.float64 else torch.float32
        kept.append(input.new_empty((2, positions.numel()), dtype=wide))
    return [loss, *kept, *_softmax_gradients(input, target, gradients)]


def _softmax_backward(upstream: Tensor, input: Tensor, target: Tensor, *arguments: Any) -> list[Tensor]:
    return _softmax_gradients(input, target, arguments[-1])


def _inplace(forward: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
    """As the forward, but the input's gradient is not returned: it is in the input."""
    return lambda *arguments: forward(*arguments[:-1], arguments[-1] & ~INPUT_GRADIENT)


def nothing(*arguments: Any) -> None:
    """For operators that only change what is there."""


def fakes_of(loss: Loss) -> tuple[Callable[..., Any], ...]:
    """The fakes of a loss's four operators, in their order."""
    if loss.family == "pointwise":
        return _pointwise_forward, _inplace(_pointwise_forward), _pointwise_backward, nothing
    forward = partial(_softmax_forward, loss.has_statistics)
    return forward, _inplace(forward), _softmax_backward, nothing

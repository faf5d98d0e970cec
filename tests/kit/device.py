"""Where the losses under test compute: with `pytest --device cuda`, on a GPU.

Tests make their tensors on the CPU and judge results there. What they call moves the tensors to the device as
they lie, and what is returned back; gradients come back by themselves.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

device: str | None = None
"""What `--device` says; None, if losses compute where the tensors are."""


class _Moved(torch.autograd.Function):
    """A copy on the device, whose strides and alignment are those of the tensor, be they dense or not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        if not x.numel():
            return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device)
        span = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True)) + 1
        offset = x.storage_offset() % 16
        memory = torch.zeros(offset + span, dtype=x.dtype, device=device)
        memory[offset:] = x.as_strided((span,), (1,)).to(device)
        return memory.as_strided(x.shape, x.stride(), offset)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.cpu()


def autocast() -> torch.autocast:
    """Autocast to bfloat16, for the device on which the losses under test compute."""
    return torch.autocast(device or "cpu", torch.bfloat16)


def there(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of tensors on the CPU, computed on the device."""

    @functools.wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        if device is None:
            return function(*arguments, **keywords)

        def move(x: Any) -> Any:
            return _Moved.apply(x) if isinstance(x, Tensor) else x

        results = function(*tree_map(move, arguments), **tree_map(move, keywords))
        return tree_map(lambda x: x.cpu() if isinstance(x, Tensor) else x, results)

    return call

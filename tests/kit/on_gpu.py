"""Steps on a GPU, for the tests of what only a GPU shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import fused_losses.functional as L
from fused_losses.registry import LOSSES
from kit.cases import inputs_of

SHAPES = {"elements": (64, 1000), "classes": (64, 1000), "scores": (64, 1000), "vectors": (64, 100)}


def operands_of(name: str, dtype: torch.dtype = torch.float32, device: str = "cuda") -> tuple[Tensor, ...]:
    """On the device; the first one requires grad."""
    tensors = [
        x.to(device, dtype if x.is_floating_point() else x.dtype)
        for x in inputs_of(name, *SHAPES[LOSSES[name].shapes])
    ]
    return tensors[0].requires_grad_(), *tensors[1:]


def loss_of(name: str, input: Tensor, *others: Tensor, **options: Any) -> Tensor:
    """Of an input that is no leaf, as logits are."""
    loss: Tensor = getattr(L, name)(input * 1, *others, **{**LOSSES[name].call, **options})
    return loss


def step(
    name: str, input: Tensor, *others: Tensor, upstream: Tensor | None = None, **options: Any
) -> tuple[Tensor, ...]:
    """The loss and the input's gradient."""
    loss = loss_of(name, input, *others, **options)
    return loss.detach(), torch.autograd.grad(loss, input, upstream)[0]


def bits_agree(expected: tuple[Tensor, ...], *others: tuple[Tensor, ...]) -> None:
    """All results are the same bits."""
    for other in others:
        torch.testing.assert_close(other, expected, rtol=0, atol=0)


def _head(device: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Input (150, 24) and weight (72, 24) of a linear head, which require grad."""
    generator = torch.Generator().manual_seed(0)
    shapes = (150, 24), (72, 24)
    return tuple(
        torch.randn(shape, generator=generator).to(device, dtype).requires_grad_() for shape in shapes
    )


def _labels(device: str = "cuda", dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    labels = torch.arange(150) % 72
    labels[5:20] = -100
    return *_head(device, dtype), labels.to(device)


def _targets(device: str = "cuda", dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    targets = torch.rand(150, 72, generator=torch.Generator().manual_seed(1))
    return *_head(device, dtype), targets.to(device, dtype)


HEADS: dict[str, Callable[..., tuple[Tensor, ...]]] = {"cross_entropy": _labels, "mse_loss": _targets}
"""Losses over a linear head, whose labels are ignored in part, and their operands."""


def head_step(loss: str, input: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, ...]:
    """The loss over the head, in chunks of 64 rows, and both gradients."""
    value = L.linear_loss(input, weight, target, loss, workspace=64 * 72 * input.itemsize)
    return value.detach(), *torch.autograd.grad(value, (input, weight))

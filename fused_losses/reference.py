"""The losses in torch's own operators, differentiable any number of times and under every transform.

Each takes what the operators take: `(input, target, weight, extra, options, reduction)`, reduction by name.
Where torch has the loss as it is, this is torch's function; the extensions beyond torch are composed of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Options = tuple[Any, ...]


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    extra: None,
    options: Options,
    reduction: str,
) -> Tensor:
    """Options: ignore_index, label_smoothing."""
    ignore_index, label_smoothing = options
    return F.cross_entropy(
        input,
        target,
        weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    extra: None,
    options: Options,
    reduction: str,
) -> Tensor:
    """Options: ignore_index, and a label smoothing of 0, which the softmax family shares."""
    return F.nll_loss(input, target, weight, ignore_index=options[0], reduction=reduction)


def mse_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    extra: None,
    options: Options,
    reduction: str,
) -> Tensor:
    """No options are in use."""
    pair = _same_shape(input, target)
    return F.mse_loss(*pair, reduction=reduction, weight=weight)  # type: ignore[call-arg]


def l1_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    extra: None,
    options: Options,
    reduction: str,
) -> Tensor:
    """No options are in use."""
    pair = _same_shape(input, target)
    return F.l1_loss(*pair, reduction=reduction, weight=weight)  # type: ignore[call-arg]


def binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    extra: None,
    options: Options,
    reduction: str,
) -> Tensor:
    """Options: parameters (none), ignore_index."""

    def elements(target: Tensor, reduction: str) -> Tensor:
        return F.binary_cross_entropy(input, target, weight, reduction=reduction)

    return _ignoring(elements, target, options[1], reduction)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    options: Options,
    reduction: str,
) -> Tensor:
    """Options: parameters (none), ignore_index."""

    def elements(target: Tensor, reduction: str) -> Tensor:
        return F.binary_cross_entropy_with_logits(
            input, target, weight, reduction=reduction, pos_weight=pos_weight
        )

    return _ignoring(elements, target, options[1], reduction)


def _same_shape(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Broadcast in advance: the warning about it has been given."""
    if input.shape == target.shape:
        return input, target
    broadcast = torch.broadcast_tensors(input, target)
    return broadcast[0], broadcast[1]


def _ignoring(
    elements: Callable[[Tensor, str], Tensor],
    target: Tensor,
    ignore_index: float | None,
    reduction: str,
) -> Tensor:
    """The loss of the elements whose target is not `ignore_index`, and their mean."""
    if ignore_index is None:
        return elements(target, reduction)
    kept = target != ignore_index
    # 0 is a target that every loss takes; what it yields is dropped by the second `where`.
    losses = torch.where(kept, elements(torch.where(kept, target, 0.0), "none"), 0.0)
    if reduction == "none":
        return losses
    return losses.sum() / kept.sum() if reduction == "mean" else losses.sum()

"""What a call returns, made of the numbers that all processes know."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_losses.distributed.rows import Merged
from fused_losses.distributed.target import Target
from fused_losses.functional.cross_entropy import Asked, CrossEntropyOutput, reduced


class Rows(NamedTuple):
    """What the autograd functions return: the loss, and of each row what is made into results."""

    loss: Tensor
    lse: Tensor
    argmax: Tensor
    right: Tensor
    divisor: Tensor
    """What the reduction divides by."""


def divided(
    merged: Merged, target: Target, normalizer: Tensor | None, dtype: torch.dtype
) -> tuple[Rows, Tensor]:
    """The rows of a call whose logits have this dtype, and what the upstream gradient is multiplied by."""
    losses, reduction = merged.losses(target), target.options.reduction
    divisor = losses.new_ones(())
    if reduction == "mean":
        divisor = merged.divisor(target) if normalizer is None else normalizer
    loss = losses if reduction == "none" else losses.sum() / divisor
    wide = torch.float64 if dtype is torch.float64 else torch.float32
    lse = torch.where(target.counts, merged.lse, 0).to(wide)
    return Rows(loss.to(dtype), lse, merged.largest, merged.right.float(), divisor), 1 / divisor


def slopes(upstream: Tensor | None, factor: Tensor, target: Target) -> Tensor:
    """What the losses of rows are multiplied by: 0 for those that do not count."""
    if upstream is None:
        return torch.zeros_like(target.counts, dtype=torch.float64)
    return torch.where(target.counts, upstream.double() * factor, 0.0)


def output_of(rows: Rows, asked: Asked, target: Target) -> Any:
    """The loss, or with it what is asked for."""
    if not any(asked):
        return rows.loss
    reduction = target.options.reduction
    counted = target.counts.sum() if reduction == "mean" else None
    divisor = rows.divisor if reduction == "mean" else None
    return CrossEntropyOutput(
        rows.loss,
        rows.lse if asked.lse else None,
        reduced(target.options.z_loss * rows.lse**2, reduction, divisor) if asked.z_loss else None,
        reduced(rows.right, reduction, counted) if asked.accuracy else None,
        rows.argmax if asked.argmax else None,
    )

"""What a call returns, made of the numbers that all processes know."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_losses.call import accumulate_dtype
from fused_losses.distributed.rows import Merged
from fused_losses.distributed.target import Target
from fused_losses.losses.softmax_outputs import CrossEntropyOutput, Requested, reduce_rows


class Rows(NamedTuple):
    """What the autograd functions return: the loss, and the numbers of rows that results are made of."""

    loss: Tensor
    """() or (N), in the logits' dtype."""
    lse: Tensor
    """(N), float32 (float64 for float64); 0 where the row does not count."""
    argmax: Tensor
    """(N), int64."""
    right: Tensor
    """Whether the target has the largest logit, (N), float32."""
    divisor: Tensor
    """What the reduction divides by, (), float64."""


def reduce_losses(
    merged: Merged, target: Target, normalizer: Tensor | None, dtype: torch.dtype
) -> tuple[Rows, Tensor]:
    """The results of a call whose logits have this dtype, and the factor () of the upstream gradient."""
    losses, reduction = merged.losses(target), target.options.reduction
    divisor = losses.new_ones(())
    if reduction == "mean":
        divisor = merged.divisor(target) if normalizer is None else normalizer
    loss = losses if reduction == "none" else losses.sum() / divisor
    lse = torch.where(target.counts, merged.lse, 0).to(accumulate_dtype(dtype))
    return Rows(loss.to(dtype), lse, merged.largest, merged.right.float(), divisor), 1 / divisor


def slopes(upstream: Tensor | None, factor: Tensor, target: Target) -> Tensor:
    """What the losses of rows are multiplied by, (N), float64: 0 for those that do not count."""
    if upstream is None:
        return torch.zeros_like(target.counts, dtype=torch.float64)
    return torch.where(target.counts, upstream.double() * factor, 0.0)


def build_output(rows: Rows, requested: Requested, target: Target) -> Any:
    """The loss, or with it what is requested."""
    if not any(requested):
        return rows.loss
    reduction = target.options.reduction
    counted = target.counts.sum() if reduction == "mean" else None
    divisor = rows.divisor if reduction == "mean" else None
    return CrossEntropyOutput(
        rows.loss,
        rows.lse if requested.lse else None,
        reduce_rows(target.options.z_loss * rows.lse**2, reduction, divisor) if requested.z_loss else None,
        reduce_rows(rows.right, reduction, counted) if requested.accuracy else None,
        rows.argmax if requested.argmax else None,
    )

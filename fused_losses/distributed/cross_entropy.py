"""Vocab-parallel cross-entropy of logits."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from fused_losses.distributed.rows import Merged, Options, Target, local_numbers, merge, write_gradient
from fused_losses.distributed.shard import Shard, localized, whole
from fused_losses.functional.cross_entropy import divisor_of


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    shard: Shard | None = None,
    group: dist.ProcessGroup | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    normalizer: Tensor | float | None = None,
    backward: Literal["recompute", "inplace"] = "recompute",
) -> Tensor:
    """:func:`fused_losses.functional.cross_entropy` with classes spread over processes.

    Every process calls it, with the same rows and options. The forward reads the local logits once and
    gathers 16 bytes for each row and process (24 with label smoothing or probabilities); the backward
    communicates nothing.

    Args:
        input: the local logits (N, C_local), or a DTensor (N, C) with `Shard(1)`.
        target: class indices (N), numbered over all classes, or probabilities of the local classes,
            (N, C_local).
        weight: a factor for each local class, (C_local), or a DTensor (C) with `Shard(0)`.
        shard: which classes are local. If not given, every process tells the others how many it has, which
            waits for them; a DTensor knows.
        group: the processes, if neither a shard nor a DTensor says; all of them if not given.
        ignore_index: rows with this class count neither in the loss nor in the mean's divisor.
        reduction: "none", "mean" or "sum".
        label_smoothing: in [0, 1], over all classes.
        z_loss: the factor of each row's squared log-sum-exp.
        normalizer: what the mean divides by instead.
        backward: "recompute" makes the gradient in a buffer of its own, "inplace" over the input.

    Returns:
        The loss, a plain tensor, the same on every process.

    Raises:
        IndexError: a class out of range (on a GPU, it contributes to no process's hot class instead).
        ValueError: placements other than those above; another reduction or `backward`.
    """
    if backward not in ("recompute", "inplace"):
        raise ValueError(f"backward must be 'recompute' or 'inplace', but it is {backward!r}")
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"{reduction} is not a valid value for reduction")
    local, shard = localized(input, -1, shard, group)
    if target.is_floating_point():
        target, _ = localized(target, -1, shard, group)
    if weight is not None:
        weight, _ = localized(weight, 0, shard, group)
    options = Options(shard, ignore_index, label_smoothing, z_loss)
    divisor = divisor_of(normalizer, reduction, local.device)
    loss: Tensor = VocabParallel.apply(local, whole(target), weight, options, reduction, divisor, backward)
    return loss


class VocabParallel(Function):
    """The loss, and the gradient of the local logits."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        options: Options,
        reduction: str,
        normalizer: Tensor | None,
        backward: str,
    ) -> Tensor:
        """The loss."""
        compared = Target.of(target, weight, options)
        merged = merge(options.shard.gather(local_numbers(input, compared)), compared)
        losses = merged.losses(compared)
        loss, factor = reduced(losses, merged, compared, reduction, normalizer)
        ctx.compared, ctx.merged, ctx.factor, ctx.backward = compared, merged, factor, backward
        ctx.save_for_backward(input)
        return loss.to(input.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of the local logits."""
        (input,) = ctx.saved_tensors
        slope = slopes(upstream, ctx.factor, ctx.compared)
        into = input.detach() if ctx.backward == "inplace" else torch.empty_like(input)
        write_gradient(input, ctx.compared, ctx.merged, slope, into)
        if ctx.backward == "inplace":
            torch.autograd.graph.increment_version(input)
        return into, None, None, None, None, None, None


def reduced(
    losses: Tensor, merged: Merged, target: Target, reduction: str, normalizer: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The loss, and what the upstream gradient is multiplied by."""
    one = losses.new_ones(())
    if reduction == "none":
        return losses, one
    if reduction == "sum":
        return losses.sum(), one
    divisor = merged.divisor(target) if normalizer is None else normalizer
    return losses.sum() / divisor, one / divisor


def slopes(upstream: Tensor, factor: Tensor, target: Target) -> Tensor:
    """Of each row that counts; 0 for the others."""
    return torch.where(target.counts, upstream.double() * factor, 0.0)

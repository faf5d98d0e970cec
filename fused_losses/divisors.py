"""What the mean of a loss divides by, for those who add up the losses themselves."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from fused_losses import reference
from fused_losses.call import Call, PointwiseOptions, Reduction, SoftmaxOptions
from fused_losses.registry import LOSSES
from fused_losses.shapes import broadcast


def divisor(call: Call) -> Tensor:
    """What the reduction divides the sum of all losses by: (), float64; 1 for a sum.

    The call's input need not have memory: only its shape and device are looked at.
    """
    input, target, weight, extra = call.operands
    if call.reduction == Reduction.MEAN:
        loss = LOSSES[call.name]
        normalizer: Tensor | None = getattr(call.options, "normalizer", None)
        if normalizer is not None:
            return normalizer
        if loss.family == "softmax":
            options = cast(SoftmaxOptions, call.options)
            return reference.divisor_of_mean(input, target, weight, options.ignore_index)
        if loss.family == "pointwise":
            if loss.mean_over_weights and weight is not None:
                return weight.sum(dtype=torch.float64)
            ignored = cast(PointwiseOptions, call.options).ignore_index
            if ignored is not None:
                return _count_other(target, ignored)
            return _number(broadcast(input, target, extra).numel(), input)
        return _number(input.shape[0], input)
    return _number(input.shape[0] if call.reduction == Reduction.BATCH_MEAN else 1, input)


def _count_other(target: Tensor, ignored: float) -> Tensor:
    """How many elements of a target, dense or sparse, differ from a number: (), float64."""
    if not target.is_sparse:
        return (target != ignored).sum(dtype=torch.float64)
    stored = target.coalesce().values()
    zeros = target.numel() - stored.numel() if ignored != 0 else 0
    return (stored != ignored).sum(dtype=torch.float64) + zeros


def _number(count: int, like: Tensor) -> Tensor:
    """A number as a tensor (), float64, on the device of another."""
    return like.new_full((), count, dtype=torch.float64)

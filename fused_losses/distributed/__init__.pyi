"""The functions' types, as in `fused_losses.functional`."""

from typing import Literal, overload

import torch.distributed as dist
from torch import Tensor
from typing_extensions import Unpack

from fused_losses.distributed.contrastive import clip_loss as clip_loss
from fused_losses.distributed.contrastive import siglip_loss as siglip_loss
from fused_losses.distributed.shard import Shard as Shard
from fused_losses.losses import CrossEntropyOutput
from fused_losses.losses.softmax_keywords import Alone, Unknown, WithAccuracy, WithArgmax, WithLse, WithZLoss
from fused_losses.names import ReductionName

__all__ = ["Shard", "clip_loss", "cross_entropy", "linear_cross_entropy", "siglip_loss"]

@overload
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    shard: Shard | None = None,
    group: dist.ProcessGroup | None = None,
    ignore_index: int = -100,
    reduction: ReductionName = "mean",
    label_smoothing: float = 0.0,
    backward: Literal["recompute", "inplace"] = "recompute",
    normalizer: Tensor | float | None = None,
    **more: Unpack[Alone],
) -> Tensor: ...
@overload
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    shard: Shard | None = None,
    group: dist.ProcessGroup | None = None,
    ignore_index: int = -100,
    reduction: ReductionName = "mean",
    label_smoothing: float = 0.0,
    backward: Literal["recompute", "inplace"] = "recompute",
    normalizer: Tensor | float | None = None,
    **more: Unpack[WithLse],
) -> CrossEntropyOutput: ...
@overload
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    shard: Shard | None = None,
    group: dist.ProcessGroup | None = None,
    ignore_index: int = -100,
    reduction: ReductionName = "mean",
    label_smoothing: float = 0.0,
    backward: Literal["recompute", "inplace"] = "recompute",
    normalizer: Tensor | float | None = None,
    **more: Unpack[WithZLoss],
) -> CrossEntropyOutput: ...
@overload
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    shard: Shard | None = None,
    group: dist.ProcessGroup | None = None,
    ignore_index: int = -100,
    reduction: ReductionName = "mean",
    label_smoothing: float = 0.0,
    backward: Literal["recompute", "inplace"] = "recompute",
    normalizer: Tensor | float | None = None,
    **more: Unpack[WithAccuracy],
) -> CrossEntropyOutput: ...
@overload
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    shard: Shard | None = None,
    group: dist.ProcessGroup | None = None,
    ignore_index: int = -100,
    reduction: ReductionName = "mean",
    label_smoothing: float = 0.0,
    backward: Literal["recompute", "inplace"] = "recompute",
    normalizer: Tensor | float | None = None,
    **more: Unpack[WithArgmax],
) -> CrossEntropyOutput: ...
@overload
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    shard: Shard | None = None,
    group: dist.ProcessGroup | None = None,
    ignore_index: int = -100,
    reduction: ReductionName = "mean",
    label_smoothing: float = 0.0,
    backward: Literal["recompute", "inplace"] = "recompute",
    normalizer: Tensor | float | None = None,
    **more: Unpack[Unknown],
) -> Tensor | CrossEntropyOutput: ...
@overload
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    shard: Shard | None = None,
    group: dist.ProcessGroup | None = None,
    ignore_index: int = -100,
    reduction: ReductionName = "mean",
    label_smoothing: float = 0.0,
    workspace: int | None = None,
    normalizer: Tensor | float | None = None,
    **more: Unpack[Alone],
) -> Tensor: ...
@overload
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    shard: Shard | None = None,
    group: dist.ProcessGroup | None = None,
    ignore_index: int = -100,
    reduction: ReductionName = "mean",
    label_smoothing: float = 0.0,
    workspace: int | None = None,
    normalizer: Tensor | float | None = None,
    **more: Unpack[WithLse],
) -> CrossEntropyOutput: ...
@overload
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    shard: Shard | None = None,
    group: dist.ProcessGroup | None = None,
    ignore_index: int = -100,
    reduction: ReductionName = "mean",
    label_smoothing: float = 0.0,
    workspace: int | None = None,
    normalizer: Tensor | float | None = None,
    **more: Unpack[WithZLoss],
) -> CrossEntropyOutput: ...
@overload
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    shard: Shard | None = None,
    group: dist.ProcessGroup | None = None,
    ignore_index: int = -100,
    reduction: ReductionName = "mean",
    label_smoothing: float = 0.0,
    workspace: int | None = None,
    normalizer: Tensor | float | None = None,
    **more: Unpack[WithAccuracy],
) -> CrossEntropyOutput: ...
@overload
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    shard: Shard | None = None,
    group: dist.ProcessGroup | None = None,
    ignore_index: int = -100,
    reduction: ReductionName = "mean",
    label_smoothing: float = 0.0,
    workspace: int | None = None,
    normalizer: Tensor | float | None = None,
    **more: Unpack[WithArgmax],
) -> CrossEntropyOutput: ...
@overload
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    shard: Shard | None = None,
    group: dist.ProcessGroup | None = None,
    ignore_index: int = -100,
    reduction: ReductionName = "mean",
    label_smoothing: float = 0.0,
    workspace: int | None = None,
    normalizer: Tensor | float | None = None,
    **more: Unpack[Unknown],
) -> Tensor | CrossEntropyOutput: ...

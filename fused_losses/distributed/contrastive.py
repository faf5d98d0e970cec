"""Losses of pairs of features against all others, where each process of a group has some of the pairs."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from fused_losses.distributed.shard import Shard
from fused_losses.linear.autograd import Strategy
from fused_losses.linear.contrastive import both_softmaxes, check_pairs, sigmoids_of_pairs, with_bias


def clip_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor | float,
    *,
    logit_bias: Tensor | float | None = None,
    local_loss: bool = False,
    gather_with_grad: bool = False,
    group: dist.ProcessGroup | None = None,
    workspace: int | None = None,
    backward: Strategy = "fused",
) -> Tensor:
    r"""CLIP's loss of the pairs of all P processes, as :func:`fused_losses.functional.clip_loss`.

    Each process gathers the features of all: it holds :math:`2 P N D` numbers, and a workspace of logits.
    Values and gradients are those of open_clip.loss.ClipLoss with the same options. To train as one process
    with all pairs would, set `gather_with_grad`, and average the gradients of parameters over processes, as
    DistributedDataParallel does.

    Args:
        image_features: (N, D); every process has as many.
        text_features: (N, D).
        logit_scale: what logits are multiplied by.
        logit_bias: what is added to them, which a softmax does not see: its gradient is 0.
        local_loss: the loss of this process's own pairs over the features of all, instead of the loss of all
            pairs, which every process computes as a whole.
        gather_with_grad: the gradients of other processes' losses reach this one's features. Otherwise, only
            the gradient of its own loss does, and with `local_loss` only by way of the features that are not
            gathered.
        group: the processes; None for all.
        workspace: bytes of logits at a time; 128 MiB at most if not given.
        backward: "fused": the forward makes the gradients, and holds them until the backward. "recompute":
            the backward makes the logits again, as any backward but the first does.

    Returns:
        The loss, the same on all processes unless it is local.

    Raises:
        ValueError: features of different shapes, or not of two dimensions.

    Example:
        >>> features = torch.eye(3)
        >>> fused_losses.distributed.clip_loss(features, features, 2.0, gather_with_grad=True)
        tensor(0.2395)
    """
    check_pairs(image_features, text_features)
    count, rank = len(image_features), dist.get_rank(group)
    all_images, all_texts = (
        _gathered(x, group, gather_with_grad, keeps_own=not local_loss)
        for x in (image_features, text_features)
    )
    first, own = 0, (all_images, all_texts)
    if local_loss:
        first, own = rank * count, (image_features, text_features)
    labels = torch.arange(first, first + len(own[0]), device=image_features.device)
    loss = both_softmaxes(*own, all_images, all_texts, labels, logit_scale, workspace, backward)
    return loss if logit_bias is None else with_bias(loss, logit_bias)


def siglip_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float | None = None,
    *,
    group: dist.ProcessGroup | None = None,
    workspace: int | None = None,
    backward: Strategy = "fused",
) -> Tensor:
    r"""SigLIP's loss of this process's images and all texts, as :func:`fused_losses.functional.siglip_loss`.

    Each process gathers the texts' features of all P: it holds :math:`P N D` numbers, and a workspace of
    logits. The gradients of other processes' losses reach this one's texts. Values and gradients are those of
    open_clip.loss.SigLipLoss, by whichever of its implementations. The loss of one process with all pairs is
    the mean over processes.

    Args:
        image_features: (N, D); every process has as many.
        text_features: (N, D).
        logit_scale: what logits are multiplied by.
        logit_bias: what is added to them.
        group: the processes; None for all.
        workspace: bytes of logits at a time; 128 MiB at most if not given.
        backward: "fused": the forward makes the gradients, and holds them until the backward. "recompute":
            the backward makes the logits again, as any backward but the first does.

    Raises:
        ValueError: features of different shapes, or not of two dimensions.

    Example:
        >>> features = torch.eye(3)
        >>> fused_losses.distributed.siglip_loss(features, features, 10.0, -5.0)
        tensor(0.0201)
    """
    check_pairs(image_features, text_features)
    texts = _gathered(text_features, group, with_grad=True, keeps_own=True)
    first = dist.get_rank(group) * len(image_features)
    return sigmoids_of_pairs(image_features, texts, first, logit_scale, logit_bias, workspace, backward)


def _gathered(features: Tensor, group: dist.ProcessGroup | None, with_grad: bool, keeps_own: bool) -> Tensor:
    """The features (N, D) of all P processes, (P N, D).

    Args:
        features: this process's.
        group: the processes.
        with_grad: whether each process's features have the gradients that all others have for them.
        keeps_own: whether otherwise, this process's have those that it has itself.
    """
    if with_grad:
        gathered: Tensor = _Gather.apply(features, group)
        return gathered
    parts = Shard(0, 1, 1, group).gather(features.detach())
    if keeps_own:
        rank = dist.get_rank(group)
        return torch.cat([*parts[:rank].unbind(), features, *parts[rank + 1 :].unbind()])
    return parts.flatten(0, 1)


class _Gather(Function):
    """The features of all processes, whose gradients are added up where they came from."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        """(P N, D), given (N, D)."""
        ctx.group = group
        return Shard(0, 1, 1, group).gather(features).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """(N, D), given (P N, D)."""
        total = _Sum.apply(gradient, ctx.group)
        rank, count = dist.get_rank(ctx.group), dist.get_world_size(ctx.group)
        return total.chunk(count)[rank], None


class _Sum(Function):
    """The sum of all processes' tensors, differentiable."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        """As the tensor's shape."""
        ctx.group = group
        return Shard(0, 1, 1, group).sum(tensor.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The same of gradients."""
        return _Sum.apply(gradient, ctx.group), None

"""The losses in torch's own operators, differentiable any number of times and under every transform.

Each takes what the operators take: `(input, target, weight, extra, options, reduction)`, reduction by name.
Where torch has the loss as it is, this is torch's function; what it lacks is composed of other functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fused_losses import unpatched as F
from fused_losses.call import Parameters, PointwiseOptions, SoftmaxOptions
from fused_losses.shapes import class_dim, positions

Reference = Callable[..., Tensor]
"""A function of (input, target, weight, extra, options, reduction): tensors as the operators take them, the
options of the loss's family, and the name of the reduction."""


def torchs(name: str, parameters: Mapping[str, float]) -> Reference:
    """Torch's function of that name, given the operator's parameters by name, each as its default's type."""

    def loss(
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        extra: Tensor | None,
        options: PointwiseOptions | Parameters,
        reduction: str,
    ) -> Tensor:
        operands = [input, target] if extra is None else [input, target, extra]
        if any(operand.shape != input.shape for operand in operands):
            # Broadcast in advance, since torch's warning about it has been given to the user already.
            operands = list(torch.broadcast_tensors(*operands))
        keywords: dict[str, Any] = {
            key: type(default)(x)
            for (key, default), x in zip(parameters.items(), options.parameters, strict=True)
        }
        if weight is not None:
            keywords["weight"] = weight
        result: Tensor = getattr(F, name)(*operands, **keywords, reduction=reduction)
        return result

    return loss


def cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None, extra: None, options: SoftmaxOptions, reduction: str
) -> Tensor:
    """Options: ignore_index, label_smoothing, terms, normalizer, and what only kernels are given."""
    ignore_index, label_smoothing, terms, normalizer, _ = options
    plain = not terms and normalizer is None

    def torchs(input: Tensor, reduction: str) -> Tensor:
        return F.cross_entropy(
            input,
            target,
            weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )

    if plain:
        return torchs(input, reduction)
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"{reduction} is not a valid value for reduction")
    z_loss, entropy, *_ = terms or (0.0, 0.0)
    logits = map_logits(input, terms)
    losses = torchs(logits, "none")
    if z_loss:
        losses = losses + (z_loss * lse(input, target, options) ** 2).to(losses.dtype)
    if entropy:
        classes = class_dim(input)
        log_p = logits.log_softmax(classes)
        p = log_p.exp()
        entropies = -(p * torch.where(p > 0, log_p, 0.0)).sum(classes)
        losses = losses - entropy * torch.where(counted(input, target, ignore_index), entropies, 0.0)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    divisor = divisor_of_mean(input, target, weight, ignore_index) if normalizer is None else normalizer
    return losses.sum() / divisor.to(losses.dtype)


def map_logits(input: Tensor, terms: tuple[float, ...]) -> Tensor:
    """What the softmax is taken of: logits times a scale, and held within a cap."""
    if not terms:
        return input
    _, _, scale, cap = terms
    if cap:
        return cap * torch.tanh(input * (scale / cap))
    return input * scale if scale != 1 else input


def counted(input: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """Whether each row is not ignored: (N, d1, ...), bool."""
    if target.is_floating_point():
        return input.new_ones(positions(input), dtype=torch.bool)  # the target may be sparse
    return target != ignore_index


def lse(input: Tensor, target: Tensor, options: SoftmaxOptions) -> Tensor:
    """Each row's log-sum-exp, in float32 (float64 for float64); 0 where it is ignored."""
    accumulated = input if input.dtype is torch.float64 else input.float()
    rows = map_logits(accumulated, options.terms).logsumexp(class_dim(input))
    return torch.where(counted(input, target, options.ignore_index), rows, 0.0)


def divisor_of_mean(input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int) -> Tensor:
    """What the mean of a softmax divides by: (), float64.

    That is the sum of the weights of the rows' labels, or the number of rows where targets are probabilities.
    """
    counts = counted(input, target, ignore_index)
    if weight is None or target.is_floating_point():
        return counts.sum(dtype=torch.float64)
    # The ignored label may be no class. Kernels raise for others that are none; this must not do so first.
    labels = torch.where(counts, target, 0).long().clamp(0, weight.shape[0] - 1)
    return torch.where(counts, weight[labels], 0).sum(dtype=torch.float64)


def nll_loss(
    input: Tensor, target: Tensor, weight: Tensor | None, extra: None, options: SoftmaxOptions, reduction: str
) -> Tensor:
    """Options: ignore_index, and a label smoothing of 0, which the softmax family shares."""
    return F.nll_loss(input, target, weight, ignore_index=options.ignore_index, reduction=reduction)


def soft_margin_loss(
    input: Tensor, target: Tensor, weight: None, extra: None, options: PointwiseOptions, reduction: str
) -> Tensor:
    """Torch's loss where that is finite; its exp overflows, which this does not."""
    return reduced(-F.logsigmoid(torch.mul(*torch.broadcast_tensors(input, target))), reduction)


def multilabel_soft_margin_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    extra: None,
    options: PointwiseOptions,
    reduction: str,
) -> Tensor:
    """Parameters: a factor; the mean over classes is the caller's."""
    losses = -(target * F.logsigmoid(input) + (1 - target) * F.logsigmoid(-input))
    if weight is not None:
        losses = losses * weight
    return reduced(losses * options.parameters[0], reduction)


def multi_margin_loss(
    input: Tensor, target: Tensor, weight: Tensor | None, extra: None, options: Parameters, reduction: str
) -> Tensor:
    """Parameters: p, margin. Torch's has no second derivative, and no bfloat16."""
    p, margin = options.parameters
    labels = target.view(*input.shape[:-1], 1)
    gaps = (margin - input.gather(-1, labels) + input).clamp_min(0) ** int(p)
    if weight is not None:
        gaps = gaps * weight[labels]
    others = torch.arange(input.shape[-1], device=input.device) != labels
    return reduced(torch.where(others, gaps, 0).sum(-1) / input.shape[-1], reduction)


def multilabel_margin_loss(
    input: Tensor, target: Tensor, weight: None, extra: None, options: Parameters, reduction: str
) -> Tensor:
    """Torch's has no second derivative, and no bfloat16."""
    listed = (target >= 0).cumprod(-1).bool()  # up to the first -1
    labels = torch.where(listed, target, 0)
    is_label = torch.zeros_like(input).scatter_add(-1, labels, listed.to(input.dtype)) > 0
    gaps = (1 - input.gather(-1, labels).unsqueeze(-1) + input.unsqueeze(-2)).clamp_min(0)
    counted = listed.unsqueeze(-1) & ~is_label.unsqueeze(-2)
    return reduced(torch.where(counted, gaps, 0).sum((-2, -1)) / input.shape[-1], reduction)


def cosine_distance(x1: Tensor, x2: Tensor) -> Tensor:
    """1 - cosine similarity, along the last dimension.

    Example:
        >>> fused_losses.functional.cosine_distance(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0]))
        tensor(1.)
    """
    return 1 - F.cosine_similarity(x1, x2, dim=-1)


def triplet_margin_with_distance_loss(
    anchor: Tensor, positive: Tensor, weight: None, negative: Tensor, options: Parameters, reduction: str
) -> Tensor:
    """Parameters: margin, p, eps, swap, and whether the distance is the cosine's."""
    margin, p, eps, swap, cosine = options.parameters

    def pairwise_distance(x1: Tensor, x2: Tensor) -> Tensor:
        return F.pairwise_distance(x1, x2, p, eps)

    return F.triplet_margin_with_distance_loss(
        anchor,
        positive,
        negative,
        distance_function=cosine_distance if cosine else pairwise_distance,
        margin=margin,
        swap=bool(swap),
        reduction=reduction,
    )


def cosine_embedding_loss(
    input1: Tensor, input2: Tensor, weight: None, target: Tensor, options: Parameters, reduction: str
) -> Tensor:
    """Parameters: margin. The target has a last dimension of 1."""
    return F.cosine_embedding_loss(
        input1, input2, target.squeeze(-1), margin=options.parameters[0], reduction=reduction
    )


def reduced(losses: Tensor, reduction: str) -> Tensor:
    """Losses, or their mean or sum.

    Raises:
        ValueError: another reduction.
    """
    if reduction == "none":
        return losses
    if reduction not in ("mean", "sum"):
        raise ValueError(f"{reduction} is not a valid value for reduction")
    return losses.mean() if reduction == "mean" else losses.sum()

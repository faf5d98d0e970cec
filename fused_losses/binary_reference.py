"""The binary cross-entropies in torch's own operators, as `reference.py` has the other losses."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fused_losses import unpatched as F
from fused_losses.call import PointwiseOptions
from fused_losses.reference import reduced


def binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    extra: None,
    options: PointwiseOptions,
    reduction: str,
) -> Tensor:
    """Parameters: label smoothing."""

    def elements(target: Tensor, reduction: str) -> Tensor:
        return F.binary_cross_entropy(input, _smoothed(target, options), weight, reduction=reduction)

    return _over_elements(elements, target, options, reduction)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    pos_weight: Tensor | None,
    options: PointwiseOptions,
    reduction: str,
) -> Tensor:
    """Parameters: label smoothing."""

    def elements(target: Tensor, reduction: str) -> Tensor:
        return F.binary_cross_entropy_with_logits(
            input, _smoothed(target, options), weight, reduction=reduction, pos_weight=pos_weight
        )

    return _over_elements(elements, target, options, reduction)


def _smoothed(target: Tensor, options: PointwiseOptions) -> Tensor:
    """Targets of which a share, the first parameter, is spread evenly over both classes."""
    (smoothing,) = options.parameters
    return target * (1 - smoothing) + smoothing / 2 if smoothing else target


def sigmoid_focal_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    extra: None,
    options: PointwiseOptions,
    reduction: str,
) -> Tensor:
    """Parameters: alpha, below 0 for none, and gamma.

    With u the distance of the probability from the target's class: the power u^gamma is made of log u, which
    is the logarithm of a sigmoid where the target is 0 or 1: it has derivatives wherever u vanishes.
    """
    alpha, gamma = options.parameters
    _check_same_shape(input, target)

    def elements(target: Tensor, reduction: str) -> Tensor:
        # The derivative with respect to the target itself is that of the general form.
        is_hard = ((target == 0) | (target == 1)) & (not target.requires_grad)
        soft, side = torch.where(is_hard, 0.5, target), torch.where(is_hard, 1 - 2 * target, 1.0)
        # Far from 0, the power is constant: an infinite loss times its derivative, 0, would be NaN.
        near = input.clamp(-1e4, 1e4)
        general = soft * F.logsigmoid(input) + (1 - soft) * F.logsigmoid(-input)
        losses = -torch.where(is_hard, F.logsigmoid(-side * input), general)
        if gamma:
            distance = soft * torch.sigmoid(-near) + (1 - soft) * torch.sigmoid(near)
            log_distance = torch.where(is_hard, F.logsigmoid(side * near), distance.log())
            losses = losses * torch.exp(gamma * log_distance)
        if alpha >= 0:
            losses = losses * (alpha * target + (1 - alpha) * (1 - target))
        return reduced(losses if weight is None else losses * weight, reduction)

    return _over_elements(elements, target, options, reduction)


def asymmetric_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    extra: None,
    options: PointwiseOptions,
    reduction: str,
) -> Tensor:
    """Parameters: gamma_neg, gamma_pos, clip and eps."""
    gamma_neg, gamma_pos, clip, eps = options.parameters
    _check_same_shape(input, target)

    def elements(target: Tensor, reduction: str) -> Tensor:
        # The derivative of a sigmoid is taken of its logarithm, which does not round to that of 1.
        p, q = F.logsigmoid(input).exp(), F.logsigmoid(-input).exp()
        shifted = (p - clip).clamp_min(0)
        log_negative = (q + clip).clamp_max(1).log() if clip else F.logsigmoid(-input)
        least = math.log(eps)
        losses = -target * F.logsigmoid(input).clamp_min(least)
        losses = losses - (1 - target) * log_negative.clamp_min(least)
        distance = target * q + (1 - target) * shifted
        gamma = gamma_pos * target + gamma_neg * (1 - target)
        # As for the focal loss; and a power of 0, whose derivative may be infinite, is a number by itself.
        is_positive = (target == 1) & (not target.requires_grad)
        is_there = (distance > 0) | is_positive
        log_distance = torch.where(
            is_positive,
            F.logsigmoid(-input.clamp(-1e4, 1e4)),
            torch.where(is_there & ~is_positive, distance, 1.0).log(),
        )
        power = torch.exp(gamma * log_distance)
        losses = losses * torch.where(is_there, power, (gamma == 0).to(power.dtype))
        return reduced(losses if weight is None else losses * weight, reduction)

    return _over_elements(elements, target, options, reduction)


def _check_same_shape(input: Tensor, target: Tensor) -> None:
    if target.shape != input.shape:
        raise ValueError(f"Target size ({target.size()}) must be the same as input size ({input.size()})")


def _over_elements(
    elements: Callable[[Tensor, str], Tensor],
    target: Tensor,
    options: PointwiseOptions,
    reduction: str,
) -> Tensor:
    """The loss of the elements whose target is not ignored; the mean of these, or over a normalizer."""
    _, ignored, normalizer = options
    if ignored is None and normalizer is None:
        return elements(target, reduction)
    divisor = normalizer
    if ignored is None:
        losses = elements(target, "none")
    else:
        kept = target != ignored
        # 0 is a target that every loss takes; what it yields is dropped by the second `where`.
        losses = torch.where(kept, elements(torch.where(kept, target, 0.0), "none"), 0.0)
        divisor = kept.sum() if normalizer is None else normalizer
    if reduction != "mean":
        return reduced(losses, reduction)
    assert divisor is not None
    total = losses.sum()
    return (total / divisor).to(total.dtype)

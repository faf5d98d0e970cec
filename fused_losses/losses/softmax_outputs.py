"""What can be had of a softmax besides its loss, and the operators' numbers for it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_losses import reference
from fused_losses.call import SoftmaxOptions
from fused_losses.shapes import class_dim


class CrossEntropyOutput(NamedTuple):
    """The loss, and what else was asked for; None for what was not.

    Example:
        >>> logits, target = torch.tensor([[0.0, 1.0], [0.0, 2.0]]), torch.tensor([1, 0])
        >>> wanted = {"return_lse": True, "return_argmax": True}
        >>> output = fused_losses.functional.cross_entropy(logits, target, **wanted)
        >>> output.loss
        tensor(1.2201)
        >>> output.lse
        tensor([1.3133, 2.1269])
        >>> output.argmax
        tensor([1, 1])
    """

    loss: Tensor
    lse: Tensor | None = None
    """Each row's log-sum-exp, float32 (float64 for float64); 0 where the row is ignored. Differentiable."""
    z_loss: Tensor | None = None
    """The part of the loss that is z_loss lse^2, reduced as the loss is. Differentiable."""
    accuracy: Tensor | None = None
    """Whether the target's class has the largest logit, float32: the share of rows that count ("mean"), their
    number ("sum"), or 0 or 1 for each ("none"). Not differentiable."""
    argmax: Tensor | None = None
    """The class of each row's largest logit, the first of equals; -1 where the row is ignored."""


class Requested(NamedTuple):
    """What of a :class:`CrossEntropyOutput` is requested besides the loss."""

    lse: bool
    z_loss: bool
    accuracy: bool
    argmax: bool

    @property
    def needs_argmax(self) -> bool:
        """Whether the kernel has to find the largest logits' classes."""
        return self.accuracy or self.argmax


def build_output(
    requested: Requested,
    loss: Tensor,
    lse: Tensor,
    argmax: Tensor | None,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    options: SoftmaxOptions,
    z_loss: float,
    reduction: str,
) -> CrossEntropyOutput:
    """What a user requested, made of what kernels return of rows.

    Args:
        requested: which fields of the result are wanted.
        loss: the loss, reduced.
        lse: log-sum-exps (N, d1, ...).
        argmax: the largest logits' classes (N, d1, ...), or None.
        input: logits (N, C, d1, ...) or a tensor of that shape: its elements are not read.
        target: labels (N, d1, ...) or probabilities (N, C, d1, ...).
        weight: (C) or None.
        options: the operator's.
        z_loss: the factor of squared log-sum-exps.
        reduction: "none", "mean" or "sum".
    """
    z_part = None
    if requested.z_loss:
        divisor = options.normalizer
        if divisor is None and reduction == "mean":
            divisor = reference.divisor_of_mean(input, target, weight, options.ignore_index)
        z_part = reduce_rows(z_loss * lse**2, reduction, divisor)
    accuracy = None
    if requested.accuracy:
        assert argmax is not None
        accuracy = _accuracy(input, target, options.ignore_index, argmax, reduction)
    return CrossEntropyOutput(
        loss, lse if requested.lse else None, z_part, accuracy, argmax if requested.argmax else None
    )


_UNSET = {
    "z_loss": 0.0,
    "entropy": 0.0,
    "logit_scale": 1.0,
    "softcap": None,
    "normalizer": None,
    "return_lse": False,
    "return_z_loss": False,
    "return_accuracy": False,
    "return_argmax": False,
}
"""The options that torch's functions do not have, and their defaults, which change nothing."""


def exceed_torch(options: dict[str, Any]) -> bool:
    """Whether any of these options, all that torch's functions do not have, is set."""
    # None first: a normalizer may be a tensor, or stand for one, and is not to be compared.
    return any(x is not None and (_UNSET[name] is None or x != _UNSET[name]) for name, x in options.items())


def terms_of(z_loss: float, entropy: float, logit_scale: float, softcap: float | None) -> tuple[float, ...]:
    """The operators' terms: empty where all have no effect.

    Raises:
        TypeError: one that is no number.
        ValueError: a cap that is not positive.
    """
    named = {"z_loss": z_loss, "entropy": entropy, "logit_scale": logit_scale, "softcap": softcap or 0.0}
    for name, value in named.items():
        if not isinstance(value, (int, float, torch.SymFloat, torch.SymInt)):
            raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap must be positive, but it is {softcap}")
    terms = tuple(map(float, named.values()))
    return () if terms == (0.0, 0.0, 1.0, 0.0) else terms


def divisor_of(normalizer: Any, reduction: str, device: torch.device) -> Tensor | None:
    """The normalizer as a tensor (), float64, on that device; a number gets there without waiting.

    Raises:
        ValueError: a reduction that divides nothing; a normalizer of several numbers, or that requires grad.
    """
    if normalizer is None:
        return None
    if reduction != "mean":
        raise ValueError(f"normalizer is what the mean divides by, but reduction is {reduction!r}")
    if not isinstance(normalizer, Tensor):
        return torch.full((), normalizer, dtype=torch.float64, device=device)
    if normalizer.numel() != 1:
        raise ValueError(f"normalizer must be one number, but it has {normalizer.numel()}")
    if normalizer.requires_grad and torch.is_grad_enabled():
        raise ValueError("normalizer requires grad, but losses have no gradient for it: give it detached")
    divisor = normalizer.detach().reshape(())
    if divisor.is_cpu and device.type != "cpu":
        # A copy would wait for the device; a number that is filled in does not.
        return torch.empty((), dtype=torch.float64, device=device).fill_(divisor)
    # A copy, since a backward may read it after the user has counted on in the same memory.
    return divisor.to(device, torch.float64, copy=True)


def argmax_by_torch(input: Tensor, target: Tensor, options: SoftmaxOptions) -> Tensor:
    """The class of each row's largest logit (N, d1, ...), -1 where the row is ignored."""
    logits = reference.map_logits(input, options.terms)
    counts = reference.counted(input, target, options.ignore_index)
    return torch.where(counts, logits.argmax(class_dim(input)), -1)


def reduce_rows(rows: Tensor, reduction: str, divisor: Tensor | None) -> Tensor:
    """Numbers of rows (N, d1, ...), reduced as losses are; divided where there is something to divide by."""
    if reduction == "none":
        return rows
    total = rows.sum()
    return total if divisor is None else total / divisor.to(total.dtype)


def _accuracy(input: Tensor, target: Tensor, ignore_index: int, argmax: Tensor, reduction: str) -> Tensor:
    """Whether targets have the largest logit, float32, reduced."""
    labels = target.argmax(class_dim(input)) if target.is_floating_point() else target
    right = (argmax == labels).float()  # an ignored row's argmax is -1, which is no class
    counts = reference.counted(input, target, ignore_index)
    right = torch.where(counts, right, 0.0)
    return reduce_rows(right, reduction, counts.sum() if reduction == "mean" else None)

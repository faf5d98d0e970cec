"""Softmax cross-entropy, with what else can be had of the softmax in the same pass."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import _reduction as legacy

from fused_losses import reference
from fused_losses import unpatched as F
from fused_losses.dispatch import (
    REDUCTION_CODES,
    Backward,
    autocasts,
    by_torch,
    kernels_take,
    run,
    run_with_rows,
)
from fused_losses.operands import check_backward, is_index, takes_classes


class CrossEntropyOutput(NamedTuple):
    """The loss, and what else was asked for; None for what was not."""

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


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    backward: Backward = "fused",
    z_loss: float = 0.0,
    entropy: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    normalizer: Tensor | float | None = None,
    return_lse: bool = False,
    return_z_loss: bool = False,
    return_accuracy: bool = False,
    return_argmax: bool = False,
) -> Any:  # as a union, it would be no drop-in for whoever checks types
    r"""Softmax cross-entropy between logits and class indices or class probabilities.

    With :math:`q` the target's distribution over classes, smoothed by :math:`\epsilon`, the loss of a row is
    :math:`-\sum_c w_c q_c \log \mathrm{softmax}(x)_c`; see :func:`torch.nn.functional.cross_entropy`.

    What is not in torch comes in the same pass. Of given logits v, :math:`x = a v`, or with a cap k
    :math:`x = k \tanh(a v / k)`, as Gemma 2 has it. The loss of a row that counts is
    :math:`\ldots + z\,\mathrm{lse}(x)^2 - b\,H(\mathrm{softmax}(x))`: PaLM's z-loss, which holds logits
    near 0, and a reward b for the entropy H, which keeps the softmax from growing confident. Class weights do
    not multiply these two.

    Args:
        input: logits, (C), (N, C) or (N, C, d1, ...).
        target: class indices (int64 or uint8), shaped as input without C, or probabilities, shaped as input.
        weight: (C), a factor for each class.
        size_average: deprecated, see `reduction`.
        ignore_index: rows with this class index count neither in the loss nor in the mean's divisor.
        reduce: deprecated, see `reduction`.
        reduction: "none", "sum", or "mean": over the weights of the rows' classes, or over rows where the
            target holds probabilities.
        label_smoothing: in [0, 1].
        backward: "fused", "recompute" or "inplace".
        z_loss: z.
        entropy: b.
        logit_scale: a.
        softcap: k; None for no cap.
        normalizer: what the mean divides by instead: a number, or a tensor of one, as the number of items in
            all batches that a step accumulates.
        return_lse: each row's log-sum-exp, too.
        return_z_loss: the z-loss itself, too.
        return_accuracy: whether targets have the largest logit, too.
        return_argmax: the classes of the largest logits, too.

    Returns:
        The loss; a :class:`CrossEntropyOutput` if any more is asked for.

    Raises:
        IndexError: a class index outside [0, C) that is not ignore_index.
        RuntimeError: operands whose shapes or dtypes torch does not take either.
        ValueError: input and target of different numbers of rows; a cap that is not positive; a normalizer
            where nothing is divided, or of several numbers.
        TypeError: a factor that is no number.
    """
    check_backward(backward)
    if size_average is not None or reduce is not None:
        reduction = legacy.legacy_get_string(size_average, reduce)
    more = return_lse or return_z_loss or return_accuracy or return_argmax
    terms: tuple[float, ...] = ()
    divisor: Tensor | None = None
    if z_loss or entropy or logit_scale != 1.0 or softcap is not None or normalizer is not None:
        terms = terms_of(z_loss, entropy, logit_scale, softcap)
        divisor = divisor_of(normalizer, reduction, input.device)
    options = (ignore_index, label_smoothing, terms, divisor, None)
    if (
        kernels_take(input, target, weight)
        and reduction in REDUCTION_CODES
        and takes_classes(input, target, weight)
        and is_index(ignore_index)
        and 0.0 <= label_smoothing <= 1.0
        and (not target.is_floating_point() or ignore_index < 0)
    ):
        code = REDUCTION_CODES[reduction]
        dtype = torch.float32 if autocasts(input) and input.dtype is not torch.float64 else None
        if not more:
            return run("cross_entropy", input, target, weight, None, options, code, dtype, backward)
        loss, lse, argmax = run_with_rows(
            "cross_entropy",
            input,
            target,
            weight,
            options,
            code,
            dtype,
            backward,
            return_accuracy or return_argmax,
        )
    else:
        if not (terms or more or divisor is not None):
            return by_torch(
                F.cross_entropy,
                input,
                target,
                weight,
                ignore_index=ignore_index,
                reduction=reduction,
                label_smoothing=label_smoothing,
            )
        loss = by_torch(reference.cross_entropy, input, target, weight, None, options, reduction)
        if not more:
            return loss
        lse = reference.lse(input, target, options)
        argmax = _argmax(input, target, options) if return_accuracy or return_argmax else None
    asked = Asked(return_lse, return_z_loss, return_accuracy, return_argmax)
    return output_of(
        asked, loss, lse, argmax, input, target, weight, ignore_index, z_loss, reduction, divisor
    )


class Asked(NamedTuple):
    """What of a :class:`CrossEntropyOutput` is asked for besides the loss."""

    lse: bool
    z_loss: bool
    accuracy: bool
    argmax: bool


def output_of(
    asked: Asked,
    loss: Tensor,
    lse: Tensor,
    argmax: Tensor | None,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    z_loss: float,
    reduction: str,
    normalizer: Tensor | None,
) -> CrossEntropyOutput:
    """From what kernels return of rows; of `input`, nothing but the shape is looked at."""
    z_part = None
    if asked.z_loss:
        divided_by = normalizer
        if divided_by is None and reduction == "mean":
            divided_by = reference.divisor_of_mean(input, target, weight, ignore_index)
        z_part = reduced(z_loss * lse**2, reduction, divided_by)
    accuracy = _accuracy(input, target, ignore_index, argmax, reduction) if asked.accuracy else None
    return CrossEntropyOutput(
        loss, lse if asked.lse else None, z_part, accuracy, argmax if asked.argmax else None
    )


def terms_of(z_loss: float, entropy: float, logit_scale: float, softcap: float | None) -> tuple[float, ...]:
    """The operators' terms: none where all have no effect."""
    named = {"z_loss": z_loss, "entropy": entropy, "logit_scale": logit_scale, "softcap": softcap or 0.0}
    for name, value in named.items():
        if not isinstance(value, (int, float, torch.SymFloat, torch.SymInt)):
            raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap must be positive, but it is {softcap}")
    terms = tuple(map(float, named.values()))
    return () if terms == (0.0, 0.0, 1.0, 0.0) else terms


def divisor_of(normalizer: Any, reduction: str, device: torch.device) -> Tensor | None:
    """In float64, where input is; a number goes there without waiting."""
    if normalizer is None:
        return None
    if reduction != "mean":
        raise ValueError(f"normalizer is what the mean divides by, but reduction is {reduction!r}")
    if not isinstance(normalizer, Tensor):
        return torch.full((), normalizer, dtype=torch.float64, device=device)
    if normalizer.numel() != 1:
        raise ValueError(f"normalizer must be one number, but it has {normalizer.numel()}")
    divisor = normalizer.detach().reshape(())
    if divisor.is_cpu and device.type != "cpu":
        # A copy would wait for the device; a number that is filled in does not.
        return torch.empty((), dtype=torch.float64, device=device).fill_(divisor)
    return divisor.to(device, torch.float64)


def _argmax(input: Tensor, target: Tensor, options: tuple[Any, ...]) -> Tensor:
    logits = reference.map_logits(input, options[2])
    return torch.where(
        reference.counted(input, target, options[0]), logits.argmax(min(1, input.dim() - 1)), -1
    )


def reduced(rows: Tensor, reduction: str, divisor: Tensor | None) -> Tensor:
    """Numbers of rows, as losses are reduced; divided where there is something to divide by."""
    if reduction == "none":
        return rows
    total = rows.sum()
    return total if divisor is None else total / divisor.to(total.dtype)


def _accuracy(
    input: Tensor, target: Tensor, ignore_index: int, argmax: Tensor | None, reduction: str
) -> Tensor:
    assert argmax is not None
    labels = target.argmax(min(1, input.dim() - 1)) if target.is_floating_point() else target
    right = (argmax == labels).float()  # an ignored row's argmax is -1, which is no class
    counts = reference.counted(input, target, ignore_index)
    right = torch.where(counts, right, 0.0)
    return reduced(right, reduction, counts.sum() if reduction == "mean" else None)

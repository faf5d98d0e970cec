"""Losses of one sigmoid for each element."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import _reduction as legacy

from fused_losses import reference
from fused_losses import unpatched as F
from fused_losses.dispatch import REDUCTION_CODES, Backward, autocasts, by_torch, kernels_take, run
from fused_losses.operands import (
    as_floating,
    check_backward,
    promoted,
    promoted_without_autocast,
    takes_elements,
    takes_factor,
)
from fused_losses.shapes import broadcast_shape


def binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    *,
    ignore_index: float | None = None,
    backward: Backward = "fused",
) -> Tensor:
    r"""Binary cross-entropy :math:`-w (t \log x + (1 - t) \log(1 - x))` of probabilities x.

    Logarithms are held above -100. See :func:`torch.nn.functional.binary_cross_entropy`.

    Args:
        input: probabilities in [0, 1], any shape.
        target: shaped as input.
        weight: broadcastable to input.
        size_average: deprecated, see `reduction`.
        reduce: deprecated, see `reduction`.
        reduction: "none", "mean" or "sum".
        ignore_index: elements whose target equals this count neither in the loss nor in the mean's divisor
            (not in torch).
        backward: "fused", "recompute" or "inplace".

    Raises:
        ValueError: input and target of different shapes.
        RuntimeError: input outside [0, 1]; operands of different dtypes.
    """
    check_backward(backward)
    if size_average is not None or reduce is not None:
        reduction = legacy.legacy_get_string(size_average, reduce)
    autocast = autocasts(input)
    if (
        kernels_take(input, target, weight)
        and reduction in REDUCTION_CODES
        and input.shape == target.shape
        and takes_elements(input, target, weight)
        and (autocast or input.dtype is target.dtype)
        and (autocast or weight is None or weight.dtype is input.dtype)
    ):
        return run(
            "binary_cross_entropy",
            input,
            target,
            weight,
            None,
            ((), ignore_index),
            REDUCTION_CODES[reduction],
            promoted(input, target, weight) if autocast else None,
            backward,
        )
    return by_torch(
        reference.binary_cross_entropy, input, target, weight, None, ((), ignore_index), reduction
    )


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
    *,
    ignore_index: float | None = None,
    backward: Backward = "fused",
) -> Tensor:
    r"""Binary cross-entropy of logits x, with :math:`p = \mathrm{sigmoid}(x)`, stable for any x.

    :math:`-w (w_+ t \log p + (1 - t) \log(1 - p))`;
    see :func:`torch.nn.functional.binary_cross_entropy_with_logits`.

    Args:
        input: logits, any shape.
        target: shaped as input.
        weight: broadcastable to input.
        size_average: deprecated, see `reduction`.
        reduce: deprecated, see `reduction`.
        reduction: "none", "mean" or "sum".
        pos_weight: broadcastable to input, the factor of positive targets.
        ignore_index: elements whose target equals this count neither in the loss nor in the mean's divisor
            (not in torch).
        backward: "fused", "recompute" or "inplace".

    Raises:
        ValueError: input and target of different shapes.
        RuntimeError: a weight that requires grad, for which torch has no gradient either.
    """
    check_backward(backward)
    if size_average is not None or reduce is not None:
        reduction = legacy.legacy_get_string(size_average, reduce)
    if (
        kernels_take(input, target, weight, pos_weight)
        and reduction in REDUCTION_CODES
        and input.shape == target.shape
        and takes_elements(input, target, weight)
        and (pos_weight is None or takes_factor(input, pos_weight))
    ):
        if autocasts(input):
            dtype = promoted(input, target, weight, pos_weight)
        else:  # torch builds the loss up in the target's dtype
            dtype = None if target.dtype is input.dtype else target.dtype
        return run(
            "binary_cross_entropy_with_logits",
            input,
            target,
            weight,
            pos_weight,
            ((), ignore_index),
            REDUCTION_CODES[reduction],
            dtype,
            backward,
        )
    return by_torch(
        reference.binary_cross_entropy_with_logits,
        input,
        target,
        weight,
        pos_weight,
        ((), ignore_index),
        reduction,
    )


def multilabel_soft_margin_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    *,
    backward: Backward = "fused",
) -> Tensor:
    r"""Binary cross-entropy of logits, averaged over classes.

    The loss of a row of C logits is
    :math:`-\frac{1}{C} \sum_c w_c (t_c \log p_c + (1 - t_c) \log(1 - p_c))`, :math:`p = \mathrm{sigmoid}(x)`;
    see :func:`torch.nn.functional.multilabel_soft_margin_loss`.

    Args:
        input: logits, (..., C).
        target: broadcastable to input.
        weight: broadcastable to input, usually (C).
        size_average: deprecated, see `reduction`.
        reduce: deprecated, see `reduction`.
        reduction: "none", "mean" (over rows) or "sum".
        backward: "fused", "recompute" or "inplace".

    Raises:
        RuntimeError: shapes that do not broadcast.
        ValueError: another reduction.
    """
    check_backward(backward)
    if size_average is not None or reduce is not None:
        reduction = legacy.legacy_get_string(size_average, reduce)
    if (
        kernels_take(input, target, weight)
        and reduction in REDUCTION_CODES
        and input.dim() > 0
        and input.shape[-1] > 0
        and broadcast_shape(input, target) == input.shape
    ):
        target = as_floating(target, input)
        if takes_elements(input, target, weight):
            dtype = promoted_without_autocast(input, target, weight)
            # The mean over rows of the mean over classes is that over elements.
            share = 1.0 if reduction == "mean" else 1 / input.shape[-1]
            elements = reduction == "none"
            loss = run(
                "multilabel_soft_margin_loss",
                input,
                target,
                weight,
                None,
                ((share,), None),
                REDUCTION_CODES[reduction],
                # Elements are rounded after they are added up.
                torch.float32 if elements and (dtype or input.dtype) is not torch.float64 else dtype,
                backward,
            )
            return loss.sum(-1).to(dtype or input.dtype) if elements else loss
    return by_torch(F.multilabel_soft_margin_loss, input, target, weight, reduction=reduction)


def soft_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
    *,
    backward: Backward = "fused",
) -> Tensor:
    r"""Logistic loss :math:`\log(1 + e^{-t x})` of scores x and labels t of 1 or -1.

    It does not overflow, as torch's does for :math:`-t x` above 88; see
    :func:`torch.nn.functional.soft_margin_loss`.

    Args:
        input: scores, any shape.
        target: broadcastable to input.
        size_average: deprecated, see `reduction`.
        reduce: deprecated, see `reduction`.
        reduction: "none", "mean" or "sum".
        backward: "fused", "recompute" or "inplace".

    Raises:
        RuntimeError: shapes that do not broadcast; a target that requires grad.
    """
    check_backward(backward)
    if size_average is not None or reduce is not None:
        reduction = legacy.legacy_get_string(size_average, reduce)
    if (
        kernels_take(input, target)
        and reduction in REDUCTION_CODES
        and not target.requires_grad
        and broadcast_shape(input, target) == input.shape
    ):
        target = as_floating(target, input)
        if takes_elements(input, target, None):
            return run(
                "soft_margin_loss",
                input,
                target,
                None,
                None,
                ((), None),
                REDUCTION_CODES[reduction],
                promoted(input),
                backward,
            )
    return by_torch(F.soft_margin_loss, input, target, reduction=reduction)

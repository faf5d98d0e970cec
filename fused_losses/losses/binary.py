"""Losses of one sigmoid for each element."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from fused_losses import unpatched as F
from fused_losses.call import (
    EVERY_REDUCTION,
    NO_OPTIONS,
    REDUCTIONS,
    Backward,
    Call,
    PointwiseOptions,
    accumulate_dtype,
)
from fused_losses.dispatch import by_composed, by_override, by_torch, is_overridden, kernels_take, run
from fused_losses.losses.checks import (
    as_floating,
    meets_in_dtype,
    promoted,
    promoted_by_operators,
    reduction_of,
    takes_elements,
    takes_factor,
)
from fused_losses.losses.element_options import binary_options, exceed_torch
from fused_losses.losses.plans import plans
from fused_losses.modes import autocasts
from fused_losses.names import ReductionName
from fused_losses.shapes import broadcast_shape


def binary_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: ReductionName = "mean",
    *,
    ignore_index: float | None = None,
    label_smoothing: float = 0.0,
    normalizer: Tensor | float | None = None,
    backward: Backward = "fused",
) -> Tensor:
    r"""Binary cross-entropy :math:`-w (t \log x + (1 - t) \log(1 - x))` of probabilities x.

    Logarithms are held above -100. See :func:`torch.nn.functional.binary_cross_entropy`.

    Args:
        input: probabilities in [0, 1], any shape.
        target: in [0, 1] or `ignore_index`, shaped as input.
        weight: broadcastable to input.
        size_average: deprecated, see `reduction`.
        reduce: deprecated, see `reduction`.
        reduction: "none", "mean" or "sum".
        ignore_index: elements whose target equals this count neither in the loss nor in the mean's divisor
            (not in torch; nor are the next two).
        label_smoothing: the share e of the target that is spread evenly over both classes, in [0, 1]: of t,
            (1 - e) t + e / 2 is left.
        normalizer: what the mean divides by instead: a number, or a tensor of one.
        backward: "fused": this call computes the gradient, too, and keeps it until the backward, in a buffer
            of the input's size. "recompute": the backward computes it from the operands, and nothing else is
            kept; it takes the place of "fused" where the upstream gradient must be known first: for
            reduction="none" and for float16. "inplace": the gradient overwrites the input, so that no buffer
            is needed.

    Raises:
        ValueError: input and target of different shapes; a `label_smoothing` outside [0, 1]; a normalizer
            where nothing is divided, or of several numbers.
        TypeError: an `ignore_index` or a `label_smoothing` that is no number.
        RuntimeError: input or target outside [0, 1]; operands of different dtypes; autocast on a GPU.

    Example:
        >>> probabilities, target = torch.tensor([0.5, 0.25]), torch.tensor([1.0, 0.0])
        >>> fused_losses.functional.binary_cross_entropy(probabilities, target)
        tensor(0.4904)
    """
    reduction = reduction_of(backward, reduction, size_average, reduce)
    more: dict[str, Any] = {
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
        "normalizer": normalizer,
    }
    call = _plan_of_probabilities(input, target, weight, reduction, **more)
    if call is not None:
        return run(call, backward)
    if not exceed_torch(**more):
        return by_torch(F.binary_cross_entropy, input, target, weight, reduction=reduction)
    if is_overridden(input, target, weight, by_subclasses=False):
        more |= {"reduction": reduction, "backward": backward}
        result: Tensor = by_override(binary_cross_entropy, input, target, weight, **more)
        return result
    options = binary_options(input, target, reduction, **more)
    return by_composed("binary_cross_entropy", input, target, weight, None, options, reduction)


@plans("binary_cross_entropy")
def _plan_of_probabilities(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    *,
    ignore_index: float | None = None,
    label_smoothing: float = 0.0,
    normalizer: Tensor | float | None = None,
) -> Call | None:
    if not (
        kernels_take(input, target, weight)
        and reduction in EVERY_REDUCTION
        and input.shape == target.shape
        and takes_elements(input, target, weight)
        and meets_in_dtype(input, target)
        and (weight is None or meets_in_dtype(input, weight))
        and (input.is_cpu or not autocasts(input))  # on a GPU, torch refuses it under autocast
    ):
        return None
    return Call(
        "binary_cross_entropy",
        input,
        target,
        binary_options(input, target, reduction, ignore_index, label_smoothing, normalizer),
        REDUCTIONS[reduction],
        promoted(input),
        weight=weight,
    )


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: ReductionName = "mean",
    pos_weight: Tensor | None = None,
    *,
    ignore_index: float | None = None,
    label_smoothing: float = 0.0,
    normalizer: Tensor | float | None = None,
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
            (not in torch; nor are the next two).
        label_smoothing: the share e of the target that is spread evenly over both classes, in [0, 1]: of t,
            (1 - e) t + e / 2 is left.
        normalizer: what the mean divides by instead: a number, or a tensor of one.
        backward: "fused": this call computes the gradient, too, and keeps it until the backward, in a buffer
            of the input's size. "recompute": the backward computes it from the operands, and nothing else is
            kept; it takes the place of "fused" where the upstream gradient must be known first: for
            reduction="none" and for float16. "inplace": the gradient overwrites the input, so that no buffer
            is needed.

    Raises:
        ValueError: input and target of different shapes; a `label_smoothing` outside [0, 1]; a normalizer
            where nothing is divided, or of several numbers.
        TypeError: an `ignore_index` or a `label_smoothing` that is no number.
        RuntimeError: a weight that requires grad, for which torch has no gradient either.

    Example:
        >>> logits, target = torch.tensor([0.0, 2.0, -1.0]), torch.tensor([1.0, 1.0, -1.0])
        >>> fused_losses.functional.binary_cross_entropy_with_logits(logits, target, ignore_index=-1)
        tensor(0.4100)
    """
    reduction = reduction_of(backward, reduction, size_average, reduce)
    more: dict[str, Any] = {
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
        "normalizer": normalizer,
    }
    call = _plan_of_logits(input, target, weight, reduction, pos_weight, **more)
    if call is not None:
        return run(call, backward)
    keywords: dict[str, Any] = {"reduction": reduction, "pos_weight": pos_weight}
    if not exceed_torch(**more):
        return by_torch(F.binary_cross_entropy_with_logits, input, target, weight, **keywords)
    if is_overridden(input, target, weight, pos_weight, by_subclasses=False):
        keywords |= {**more, "backward": backward}
        result: Tensor = by_override(binary_cross_entropy_with_logits, input, target, weight, **keywords)
        return result
    options = binary_options(input, target, reduction, **more)
    name = "binary_cross_entropy_with_logits"
    return by_composed(name, input, target, weight, pos_weight, options, reduction)


@plans("binary_cross_entropy_with_logits")
def _plan_of_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
    *,
    ignore_index: float | None = None,
    label_smoothing: float = 0.0,
    normalizer: Tensor | float | None = None,
) -> Call | None:
    if not (
        kernels_take(input, target, weight, pos_weight)
        and reduction in EVERY_REDUCTION
        and input.shape == target.shape
        and takes_elements(input, target, weight)
        and (pos_weight is None or takes_factor(input, pos_weight))
    ):
        return None
    # Torch builds the loss up in the target's dtype, which autocast makes float32, but for float64.
    dtype = target.dtype
    if autocasts(input) and dtype is not torch.float64:
        dtype = torch.float32
    return Call(
        "binary_cross_entropy_with_logits",
        input,
        target,
        binary_options(input, target, reduction, ignore_index, label_smoothing, normalizer),
        REDUCTIONS[reduction],
        None if dtype is input.dtype else dtype,
        weight=weight,
        extra=pos_weight,
    )


def multilabel_soft_margin_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: ReductionName = "mean",
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
        backward: "fused": this call computes the gradient, too, and keeps it until the backward, in a buffer
            of the input's size. "recompute": the backward computes it from the operands, and nothing else is
            kept; it takes the place of "fused" where the upstream gradient must be known first: for
            reduction="none" and for float16. "inplace": the gradient overwrites the input, so that no buffer
            is needed.

    Raises:
        RuntimeError: shapes that do not broadcast.
        ValueError: another reduction.

    Example:
        >>> logits, target = torch.zeros(2, 3), torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
        >>> fused_losses.functional.multilabel_soft_margin_loss(logits, target)
        tensor(0.6931)
    """
    reduction = reduction_of(backward, reduction, size_average, reduce)
    call = _plan_multilabel_soft_margin(input, target, weight, reduction)
    if call is not None:
        return run(call, backward)
    return by_torch(F.multilabel_soft_margin_loss, input, target, weight, reduction=reduction)


@plans("multilabel_soft_margin_loss")
def _plan_multilabel_soft_margin(
    input: Tensor, target: Tensor, weight: Tensor | None = None, reduction: str = "mean"
) -> Call | None:
    if not (
        kernels_take(input, target, weight)
        and reduction in EVERY_REDUCTION
        and input.dim() > 0
        and input.shape[-1] > 0
        and broadcast_shape(input, target) == input.shape
    ):
        return None
    target = as_floating(target, input)
    if not takes_elements(input, target, weight):
        return None
    dtype = promoted_by_operators(input, target, weight)
    # The mean over rows of the mean over classes is that over elements.
    share = 1.0 if reduction == "mean" else 1 / input.shape[-1]
    finish = None
    if reduction == "none":
        # Losses of elements are rounded only after they are added up over classes.
        result_dtype = dtype or input.dtype
        dtype = accumulate_dtype(result_dtype)
        finish = partial(_sum_over_classes, dtype=result_dtype)
    return Call(
        "multilabel_soft_margin_loss",
        input,
        target,
        PointwiseOptions((share,)),
        REDUCTIONS[reduction],
        dtype,
        finish=finish,
        weight=weight,
    )


def _sum_over_classes(losses: Tensor, dtype: torch.dtype) -> Tensor:
    """The losses of rows, (...), from those of elements (..., C)."""
    return losses.sum(-1).to(dtype)


def soft_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: ReductionName = "mean",
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
        backward: "fused": this call computes the gradient, too, and keeps it until the backward, in a buffer
            of the input's size. "recompute": the backward computes it from the operands, and nothing else is
            kept; it takes the place of "fused" where the upstream gradient must be known first: for
            reduction="none" and for float16. "inplace": the gradient overwrites the input, so that no buffer
            is needed.

    Raises:
        RuntimeError: shapes that do not broadcast; a target that requires grad.

    Example:
        >>> fused_losses.functional.soft_margin_loss(torch.tensor([2.0, -2.0]), torch.tensor([1.0, 1.0]))
        tensor(1.1269)
    """
    reduction = reduction_of(backward, reduction, size_average, reduce)
    call = _plan_soft_margin(input, target, reduction)
    return (
        by_torch(F.soft_margin_loss, input, target, reduction=reduction)
        if call is None
        else run(call, backward)
    )


@plans("soft_margin_loss")
def _plan_soft_margin(input: Tensor, target: Tensor, reduction: str = "mean") -> Call | None:
    if not (
        kernels_take(input, target)
        and reduction in EVERY_REDUCTION
        and not target.requires_grad
        and broadcast_shape(input, target) == input.shape
    ):
        return None
    target = as_floating(target, input)
    if not takes_elements(input, target):
        return None
    return Call(
        "soft_margin_loss",
        input,
        target,
        NO_OPTIONS,
        REDUCTIONS[reduction],
        promoted(input),
    )

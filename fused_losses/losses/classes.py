"""Losses of class indices: likelihood, and the margins between classes."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from fused_losses import unpatched as F
from fused_losses.call import EVERY_REDUCTION, REDUCTIONS, Backward, Call, Parameters, SoftmaxOptions
from fused_losses.dispatch import by_torch, kernels_take, run
from fused_losses.losses.checks import (
    are_numbers,
    is_index,
    promoted,
    reduction_of,
    takes_class_margin,
    takes_softmax,
)
from fused_losses.losses.plans import plans
from fused_losses.modes import autocasts
from fused_losses.names import ReductionName


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: ReductionName = "mean",
    *,
    backward: Backward = "fused",
) -> Tensor:
    r"""Negative log-likelihood :math:`-w_y x_y` of class indices y under log-probabilities x.

    See :func:`torch.nn.functional.nll_loss`.

    Args:
        input: log-probabilities, (C), (N, C) or (N, C, d1, ...).
        target: class indices (int64 or uint8), shaped as input without C.
        weight: (C), a factor for each class.
        size_average: deprecated, see `reduction`.
        ignore_index: rows with this class index count neither in the loss nor in the mean's divisor.
        reduce: deprecated, see `reduction`.
        reduction: "none", "mean" (over the weights of the rows' classes) or "sum".
        backward: "fused": this call computes the gradient, too, and keeps it until the backward, in a buffer
            of the input's size. "recompute": the backward computes it from the operands, and nothing else is
            kept; it takes the place of "fused" where the upstream gradient must be known first: for
            reduction="none" and for float16. "inplace": the gradient overwrites the input, so that no buffer
            is needed.

    Raises:
        IndexError: a class index outside [0, C) that is not ignore_index.
        ValueError: input and target of different numbers of rows.
        RuntimeError: operands whose shapes or dtypes torch does not take either.

    Example:
        >>> log_probabilities = torch.tensor([[0.25, 0.75], [0.5, 0.5]]).log()
        >>> fused_losses.functional.nll_loss(log_probabilities, torch.tensor([1, 0]))
        tensor(0.4904)
    """
    reduction = reduction_of(backward, reduction, size_average, reduce)
    call = _plan_nll(input, target, weight, ignore_index, reduction)
    if call is not None:
        return run(call, backward)
    return by_torch(F.nll_loss, input, target, weight, ignore_index=ignore_index, reduction=reduction)


@plans("nll_loss")
def _plan_nll(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Call | None:
    if not (
        kernels_take(input, target, weight)
        and reduction in EVERY_REDUCTION
        and takes_softmax(input, target, weight)
        and not target.is_floating_point()
        and is_index(ignore_index)
    ):
        return None
    return Call(
        "nll_loss",
        input,
        target,
        SoftmaxOptions(ignore_index),
        REDUCTIONS[reduction],
        torch.float32 if autocasts(input) and input.dtype is not torch.float64 else None,
        weight=weight,
    )


def multi_margin_loss(
    input: Tensor,
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: ReductionName = "mean",
    *,
    backward: Backward = "fused",
) -> Tensor:
    r"""Margin of the target's score over all others.

    The loss of a row of C scores is :math:`\frac{w_y}{C} \sum_{j \ne y} \max(0, m - x_y + x_j)^p`; see
    :func:`torch.nn.functional.multi_margin_loss`, which lacks bfloat16 and float16 on the CPU.

    Args:
        input: scores, (N, C) or (C).
        target: int64 class indices, (N), or () for (C).
        p: 1 or 2.
        margin: how far the target's score should lead.
        weight: (C), a factor for each target class.
        size_average: deprecated, see `reduction`.
        reduce: deprecated, see `reduction`.
        reduction: "none", "mean" (over rows) or "sum".
        backward: "fused": this call computes the gradient, too, and keeps it until the backward, in a buffer
            of the input's size. "recompute": the backward computes it from the operands, and nothing else is
            kept; it takes the place of "fused" where the upstream gradient must be known first: for
            reduction="none" and for float16. "inplace": the gradient overwrites the input, so that no buffer
            is needed.

    Raises:
        RuntimeError: a class index outside [0, C); shapes or dtypes that do not fit.
        ValueError: another p; a weight that is not one-dimensional.

    Example:
        >>> scores = torch.tensor([[0.5, 2.0, 1.0]])
        >>> fused_losses.functional.multi_margin_loss(scores, torch.tensor([2]))
        tensor(0.8333)
    """
    reduction = reduction_of(backward, reduction, size_average, reduce)
    call = _plan_multi_margin(input, target, p, margin, weight, reduction)
    if call is not None:
        return run(call, backward)
    return by_torch(
        F.multi_margin_loss, input, target, p=p, margin=margin, weight=weight, reduction=reduction
    )


@plans("multi_margin_loss")
def _plan_multi_margin(
    input: Tensor,
    target: Tensor,
    p: int = 1,
    margin: float = 1.0,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Call | None:
    if not (
        kernels_take(input, target, weight)
        and reduction in EVERY_REDUCTION
        and are_numbers(p, margin)
        and (p == 1 or p == 2)
        and takes_class_margin(input, target, weight)
        and target.numel() == (input.shape[0] if input.dim() == 2 else 1)
        and target.dim() <= 1
    ):
        return None
    # The target of a single row may have a dimension or none, whether input has one for rows or not.
    reshaped = reduction == "none" and target.dim() != max(0, input.dim() - 1)
    return Call(
        "multi_margin_loss",
        input if input.dim() else input.reshape(1),
        target,
        Parameters((float(p), float(margin))),
        REDUCTIONS[reduction],
        promoted(input),
        finish=partial(torch.reshape, shape=target.shape) if reshaped else None,
        weight=weight,
    )


def multilabel_margin_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: ReductionName = "mean",
    *,
    backward: Backward = "fused",
) -> Tensor:
    r"""Margin of 1 of every target's score over all classes that are none.

    The loss of a row of C scores with targets Y is
    :math:`\frac{1}{C} \sum_{y \in Y} \sum_{j \notin Y} \max(0, 1 - x_y + x_j)`; see
    :func:`torch.nn.functional.multilabel_margin_loss`, which lacks bfloat16 and float16 on the CPU.

    Args:
        input: scores, (N, C) or (C).
        target: int64, shaped as input: a row's targets up to the first -1; one listed twice counts twice.
        size_average: deprecated, see `reduction`.
        reduce: deprecated, see `reduction`.
        reduction: "none", "mean" (over rows) or "sum".
        backward: "fused": this call computes the gradient, too, and keeps it until the backward, in a buffer
            of the input's size. "recompute": the backward computes it from the operands, and nothing else is
            kept; it takes the place of "fused" where the upstream gradient must be known first: for
            reduction="none" and for float16. "inplace": the gradient overwrites the input, so that no buffer
            is needed.

    Raises:
        RuntimeError: an element of target outside [-1, C); shapes or dtypes that do not fit.

    Example:
        >>> scores = torch.tensor([[0.1, 0.2, 0.4, 0.8]])
        >>> target = torch.tensor([[3, 0, -1, 1]])  # classes 3 and 0
        >>> fused_losses.functional.multilabel_margin_loss(scores, target)
        tensor(0.8500)
    """
    reduction = reduction_of(backward, reduction, size_average, reduce)
    call = _plan_multilabel_margin(input, target, reduction)
    if call is not None:
        return run(call, backward)
    return by_torch(F.multilabel_margin_loss, input, target, reduction=reduction)


@plans("multilabel_margin_loss")
def _plan_multilabel_margin(input: Tensor, target: Tensor, reduction: str = "mean") -> Call | None:
    if not (
        kernels_take(input, target)
        and reduction in EVERY_REDUCTION
        and takes_class_margin(input, target, None)
        and target.shape == input.shape
    ):
        return None
    if not input.dim():
        input, target = input.reshape(1), target.reshape(1)
    return Call(
        "multilabel_margin_loss",
        input,
        target,
        Parameters(),
        REDUCTIONS[reduction],
        promoted(input),
    )

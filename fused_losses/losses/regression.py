"""Losses of the difference of input and target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fused_losses import unpatched as F
from fused_losses.call import EVERY_REDUCTION, NO_OPTIONS, REDUCTIONS, Backward, Call, PointwiseOptions
from fused_losses.dispatch import by_torch, is_overridden, kernels_take, run
from fused_losses.losses.checks import (
    FLOATING,
    are_numbers,
    as_floating,
    check_backward,
    meets_in_dtype,
    promoted,
    promoted_by_operators,
    promoted_without_autocast,
    reduction_of,
    takes_elements,
    warn_of_broadcast,
)
from fused_losses.losses.plans import plans
from fused_losses.names import ReductionName
from fused_losses.shapes import broadcast_shape


def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: ReductionName = "mean",
    weight: Tensor | None = None,
    *,
    backward: Backward = "fused",
) -> Tensor:
    r"""Squared error :math:`w (x - t)^2`. See :func:`torch.nn.functional.mse_loss`.

    Args:
        input: any shape.
        target: broadcastable with input (with torch's warning where shapes differ).
        size_average: deprecated, see `reduction`.
        reduce: deprecated, see `reduction`.
        reduction: "none", "mean" (over the sum of the weights, if there are any) or "sum".
        weight: shaped as input.
        backward: "fused": this call computes the gradient, too, and keeps it until the backward, in a buffer
            of the input's size. "recompute": the backward computes it from the operands, and nothing else is
            kept; it takes the place of "fused" where the upstream gradient must be known first: for
            reduction="none" and for float16. "inplace": the gradient overwrites the input, so that no buffer
            is needed.

    Raises:
        ValueError: a weight shaped otherwise than input.
        RuntimeError: shapes that do not broadcast.

    Example:
        >>> x = torch.zeros(3, requires_grad=True)
        >>> fused_losses.functional.mse_loss(x, torch.ones(3), reduction="sum").backward()
        >>> x.grad
        tensor([-2., -2., -2.])
    """
    reduction = reduction_of(backward, reduction, size_average, reduce)
    call = _difference("mse_loss", input, target, reduction, weight)
    if call is not None and input.shape == target.shape:
        return run(call, backward)
    return _broadcast_or_twin(call, backward, F.mse_loss, input, target, weight, reduction=reduction)


@plans("mse_loss")
def _plan_mse(
    input: Tensor, target: Tensor, reduction: str = "mean", weight: Tensor | None = None
) -> Call | None:
    return _difference("mse_loss", input, target, reduction, weight)


def l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: ReductionName = "mean",
    weight: Tensor | None = None,
    *,
    backward: Backward = "fused",
) -> Tensor:
    r"""Absolute error :math:`w |x - t|`. See :func:`torch.nn.functional.l1_loss`.

    Args:
        input: any shape.
        target: broadcastable with input (with torch's warning where shapes differ).
        size_average: deprecated, see `reduction`.
        reduce: deprecated, see `reduction`.
        reduction: "none", "mean" (over the sum of the weights, if there are any) or "sum".
        weight: shaped as input.
        backward: "fused": this call computes the gradient, too, and keeps it until the backward, in a buffer
            of the input's size. "recompute": the backward computes it from the operands, and nothing else is
            kept; it takes the place of "fused" where the upstream gradient must be known first: for
            reduction="none" and for float16. "inplace": the gradient overwrites the input, so that no buffer
            is needed.

    Raises:
        ValueError: a weight shaped otherwise than input.
        RuntimeError: shapes that do not broadcast.

    Example:
        >>> fused_losses.functional.l1_loss(torch.zeros(3), torch.tensor([1.0, -2.0, 3.0]))
        tensor(2.)
    """
    reduction = reduction_of(backward, reduction, size_average, reduce)
    call = _difference("l1_loss", input, target, reduction, weight)
    if call is not None and input.shape == target.shape:
        return run(call, backward)
    return _broadcast_or_twin(call, backward, F.l1_loss, input, target, weight, reduction=reduction)


@plans("l1_loss")
def _plan_l1(
    input: Tensor, target: Tensor, reduction: str = "mean", weight: Tensor | None = None
) -> Call | None:
    return _difference("l1_loss", input, target, reduction, weight)


def smooth_l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: ReductionName = "mean",
    beta: float = 1.0,
    *,
    backward: Backward = "fused",
) -> Tensor:
    r"""Absolute error with a rounded corner.

    With :math:`d = x - t`: :math:`d^2 / 2\beta` where :math:`|d| < \beta`, else :math:`|d| - \beta / 2`. See
    :func:`torch.nn.functional.smooth_l1_loss`.

    Args:
        input: any shape.
        target: broadcastable with input (with torch's warning where shapes differ).
        size_average: deprecated, see `reduction`.
        reduce: deprecated, see `reduction`.
        reduction: "none", "mean" or "sum".
        beta: where the parabola ends; 0 makes it the absolute error.
        backward: "fused": this call computes the gradient, too, and keeps it until the backward, in a buffer
            of the input's size. "recompute": the backward computes it from the operands, and nothing else is
            kept; it takes the place of "fused" where the upstream gradient must be known first: for
            reduction="none" and for float16. "inplace": the gradient overwrites the input, so that no buffer
            is needed.

    Raises:
        RuntimeError: shapes that do not broadcast; a negative beta.

    Example:
        >>> fused_losses.functional.smooth_l1_loss(torch.zeros(2), torch.tensor([0.5, 3.0]), beta=1.0)
        tensor(1.3125)
    """
    reduction = reduction_of(backward, reduction, size_average, reduce)
    call = _plan_smooth_l1(input, target, reduction, beta)
    if call is not None and input.shape == target.shape:
        return run(call, backward)
    return _broadcast_or_twin(call, backward, F.smooth_l1_loss, input, target, reduction=reduction, beta=beta)


@plans("smooth_l1_loss")
def _plan_smooth_l1(input: Tensor, target: Tensor, reduction: str = "mean", beta: float = 1.0) -> Call | None:
    if not are_numbers(beta) or beta < 0 or beta != beta:
        return None
    if beta == 0:
        return _plan_l1(input, target, reduction)
    return _difference("smooth_l1_loss", input, target, reduction, None, PointwiseOptions((float(beta),)))


def huber_loss(
    input: Tensor,
    target: Tensor,
    reduction: ReductionName = "mean",
    delta: float = 1.0,
    weight: Tensor | None = None,
    *,
    backward: Backward = "fused",
) -> Tensor:
    r"""Squared error that goes on as a line.

    With :math:`d = x - t`: :math:`w d^2 / 2` where :math:`|d| \le \delta`, else
    :math:`w \delta (|d| - \delta / 2)`. See :func:`torch.nn.functional.huber_loss`.

    Args:
        input: any shape.
        target: of the same dtype, broadcastable with input (with torch's warning where shapes differ).
        reduction: "none", "mean" (over elements, whatever their weights) or "sum".
        delta: where the parabola ends, above 0.
        weight: shaped as input.
        backward: "fused": this call computes the gradient, too, and keeps it until the backward, in a buffer
            of the input's size. "recompute": the backward computes it from the operands, and nothing else is
            kept; it takes the place of "fused" where the upstream gradient must be known first: for
            reduction="none" and for float16. "inplace": the gradient overwrites the input, so that no buffer
            is needed.

    Raises:
        ValueError: a weight shaped otherwise than input.
        RuntimeError: shapes that do not broadcast; a delta that is not above 0; operands of different dtypes.

    Example:
        >>> fused_losses.functional.huber_loss(torch.zeros(2), torch.tensor([0.5, 3.0]), delta=1.0)
        tensor(1.3125)
    """
    check_backward(backward)
    call = _plan_huber(input, target, reduction, delta, weight)
    if call is not None and input.shape == target.shape:
        return run(call, backward)
    return _broadcast_or_twin(
        call, backward, F.huber_loss, input, target, weight, reduction=reduction, delta=delta
    )


@plans("huber_loss")
def _plan_huber(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
    delta: float = 1.0,
    weight: Tensor | None = None,
) -> Call | None:
    if not (are_numbers(delta) and delta > 0):
        return None
    call = _difference("huber_loss", input, target, reduction, weight, PointwiseOptions((float(delta),)))
    return call if call is not None and meets_in_dtype(input, target) else None


def _difference(
    name: str,
    input: Tensor,
    target: Tensor,
    reduction: str,
    weight: Tensor | None,
    options: PointwiseOptions = NO_OPTIONS,
) -> Call | None:
    """The plan of a loss of the difference of two tensors that broadcast with each other."""
    if not (
        kernels_take(input, target, weight)
        and reduction in EVERY_REDUCTION
        and (weight is None or (weight.shape == input.shape and not weight.requires_grad))
        and (input.shape == target.shape or broadcast_shape(input, target) is not None)
    ):
        return None
    target = as_floating(target, input)
    if input.dtype is not target.dtype and (input.dim() == 0) is not (target.dim() == 0):
        # As in torch: a single number counts for the loss's dtype only where it is expanded.
        input, target = torch.broadcast_tensors(input, target)
    if not (takes_elements(input, target) and (weight is None or weight.dtype in FLOATING)):
        return None
    return Call(
        name,
        input,
        target,
        options,
        REDUCTIONS[reduction],
        _dtype(name, input, target, weight, reduction),
        weight=weight,
    )


def _dtype(
    name: str, input: Tensor, target: Tensor, weight: Tensor | None, reduction: str
) -> torch.dtype | None:
    """The loss's dtype where it is not the input's; with weights, torch composes two losses of operators."""
    if weight is None or name == "huber_loss":
        return promoted(input, target, weight)
    if name == "l1_loss" and reduction == "none":  # no operator of which autocast knows
        return promoted_without_autocast(input, target, weight)
    return promoted_by_operators(input, target, weight)


def _broadcast_or_twin(
    call: Call | None,
    backward: Backward,
    twin: Callable[..., Tensor],
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    **keywords: Any,
) -> Tensor:
    """The loss of operands that broadcast, with torch's warning; without a call, that of `twin`."""
    if call is not None:
        warn_of_broadcast(input, target)
        return run(call, backward)
    if weight is not None:
        keywords["weight"] = weight
    elif (
        not is_overridden(input, target)
        and isinstance(input, Tensor)
        and isinstance(target, Tensor)
        and input.shape != target.shape
    ):
        # The twin would warn as well, but at a line of this package; of broadcast operands, it does not.
        warn_of_broadcast(input, target)
        input, target = torch.broadcast_tensors(input, target)
    return by_torch(twin, input, target, **keywords)

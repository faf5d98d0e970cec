"""Losses of the difference of input and target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import _reduction as legacy

from fused_losses import unpatched as F
from fused_losses.dispatch import REDUCTION_CODES, Backward, autocasts, by_torch, kernels_take, run
from fused_losses.operands import (
    FLOATING,
    as_floating,
    check_backward,
    promoted,
    takes_elements,
    warn_of_broadcast,
)
from fused_losses.shapes import broadcast_shape


def mse_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
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
        backward: "fused", "recompute" or "inplace".

    Raises:
        ValueError: a weight shaped otherwise than input.
        RuntimeError: shapes that do not broadcast.
    """
    check_backward(backward)
    if size_average is not None or reduce is not None:
        reduction = legacy.legacy_get_string(size_average, reduce)
    return _difference_loss("mse_loss", F.mse_loss, input, target, weight, (), reduction, backward)


def l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
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
        backward: "fused", "recompute" or "inplace".

    Raises:
        ValueError: a weight shaped otherwise than input.
        RuntimeError: shapes that do not broadcast.
    """
    check_backward(backward)
    if size_average is not None or reduce is not None:
        reduction = legacy.legacy_get_string(size_average, reduce)
    return _difference_loss("l1_loss", F.l1_loss, input, target, weight, (), reduction, backward)


def smooth_l1_loss(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: str = "mean",
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
        backward: "fused", "recompute" or "inplace".

    Raises:
        RuntimeError: shapes that do not broadcast; a negative beta.
    """
    check_backward(backward)
    if size_average is not None or reduce is not None:
        reduction = legacy.legacy_get_string(size_average, reduce)
    if beta == 0:
        return _difference_loss("l1_loss", F.l1_loss, input, target, None, (), reduction, backward)
    if not beta > 0:
        return by_torch(F.smooth_l1_loss, input, target, reduction=reduction, beta=beta)
    return _difference_loss(
        "smooth_l1_loss",
        F.smooth_l1_loss,
        input,
        target,
        None,
        (float(beta),),
        reduction,
        backward,
        beta=beta,
    )


def huber_loss(
    input: Tensor,
    target: Tensor,
    reduction: str = "mean",
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
        backward: "fused", "recompute" or "inplace".

    Raises:
        ValueError: a weight shaped otherwise than input.
        RuntimeError: shapes that do not broadcast; a delta that is not above 0; operands of different dtypes.
    """
    check_backward(backward)
    if not delta > 0 or (input.dtype is not target.dtype and not autocasts(input)):
        return by_torch(F.huber_loss, input, target, reduction=reduction, delta=delta, weight=weight)
    return _difference_loss(
        "huber_loss",
        F.huber_loss,
        input,
        target,
        weight,
        (float(delta),),
        reduction,
        backward,
        delta=delta,
    )


def _difference_loss(
    name: str,
    twin: Callable[..., Tensor],
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    parameters: tuple[float, ...],
    reduction: str,
    backward: Backward,
    **keywords: Any,
) -> Tensor:
    """A loss of the difference of two tensors that may broadcast; `keywords` are for torch's `twin`."""
    same_shape = input.shape == target.shape
    if (
        kernels_take(input, target, weight)
        and reduction in REDUCTION_CODES
        and (weight is None or (weight.shape == input.shape and not weight.requires_grad))
        and (same_shape or broadcast_shape(input, target) is not None)
    ):
        target = as_floating(target, input)
        if takes_elements(input, target, None) and (weight is None or weight.dtype in FLOATING):
            if not same_shape:
                warn_of_broadcast(input, target)
            return run(
                name,
                input,
                target,
                weight,
                None,
                (parameters, None),
                REDUCTION_CODES[reduction],
                promoted(input, target, weight),
                backward,
            )
    if weight is not None:
        keywords["weight"] = weight
    return by_torch(twin, input, target, reduction=reduction, **keywords)

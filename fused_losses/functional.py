"""The losses of torch.nn.functional: same names, same arguments, same results, same errors.

Every function takes torch's arguments and one more, keyword-only:

    backward  "fused" (default): loss and gradient are computed in one pass by the forward; the gradient
              takes one buffer of the input's size until backward. "recompute": the forward computes the
              loss only, the backward reads the inputs again. "inplace": as fused, but the gradient
              overwrites the input: no memory at all, and autograd raises if anything else needs the
              input. See DESIGN.md.

Shapes, dtypes and formulas are those of the functions of the same name in torch.nn.functional. Losses have
the input's dtype, and float32 under autocast; arithmetic is in float32 (float64 for float64) throughout.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import _reduction as legacy

from fused_losses import reference
from fused_losses.dispatch import (
    REDUCTION_CODES,
    Backward,
    autocasts,
    by_torch,
    kernels_take,
    run,
)
from fused_losses.operands import (
    FLOATING,
    INTEGRAL,
    broadcast,
    check_backward,
    promoted,
    takes_classes,
    takes_elements,
    takes_factor,
    warn_of_broadcast,
)

__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cross_entropy",
    "l1_loss",
    "mse_loss",
    "nll_loss",
]


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
) -> Tensor:
    r"""Softmax cross-entropy between logits and class indices or class probabilities.

    With :math:`q` the target's distribution over classes, smoothed by :math:`\epsilon`, the loss of a row is
    :math:`-\sum_c w_c q_c \log \mathrm{softmax}(x)_c`; see :func:`torch.nn.functional.cross_entropy`.

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

    Raises:
        IndexError: a class index outside [0, C) that is not ignore_index.
        RuntimeError: operands whose shapes or dtypes torch does not take either.
    """
    check_backward(backward)
    if size_average is not None or reduce is not None:
        reduction = legacy.legacy_get_string(size_average, reduce)
    if (
        kernels_take(input, target, weight)
        and reduction in REDUCTION_CODES
        and takes_classes(input, target, weight)
        and 0.0 <= label_smoothing <= 1.0
        and (not target.is_floating_point() or ignore_index < 0)
    ):
        return run(
            "cross_entropy",
            input,
            target,
            weight,
            None,
            (ignore_index, label_smoothing),
            REDUCTION_CODES[reduction],
            torch.float32 if autocasts(input) and input.dtype is not torch.float64 else None,
            backward,
        )
    return by_torch(
        F.cross_entropy,
        input,
        target,
        weight,
        ignore_index=ignore_index,
        reduction=reduction,
        label_smoothing=label_smoothing,
    )


def nll_loss(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    *,
    backward: Backward = "fused",
) -> Tensor:
    r"""Negative log-likelihood :math:`-w_y x_y` of class indices y under log-probabilities x.

    Arguments, shapes and errors are those of :func:`cross_entropy` with class indices.
    See :func:`torch.nn.functional.nll_loss`.
    """
    check_backward(backward)
    if size_average is not None or reduce is not None:
        reduction = legacy.legacy_get_string(size_average, reduce)
    if (
        kernels_take(input, target, weight)
        and reduction in REDUCTION_CODES
        and not target.is_floating_point()
        and takes_classes(input, target, weight)
    ):
        return run(
            "nll_loss",
            input,
            target,
            weight,
            None,
            (ignore_index, 0.0),
            REDUCTION_CODES[reduction],
            torch.float32 if autocasts(input) and input.dtype is not torch.float64 else None,
            backward,
        )
    return by_torch(F.nll_loss, input, target, weight, ignore_index=ignore_index, reduction=reduction)


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
    return _error_loss("mse_loss", input, target, size_average, reduce, reduction, weight, backward)


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

    Arguments, shapes and errors are those of :func:`mse_loss`.
    """
    return _error_loss("l1_loss", input, target, size_average, reduce, reduction, weight, backward)


def _error_loss(
    name: str,
    input: Tensor,
    target: Tensor,
    size_average: bool | None,
    reduce: bool | None,
    reduction: str,
    weight: Tensor | None,
    backward: Backward,
) -> Tensor:
    """A loss of the difference of two tensors that may broadcast."""
    check_backward(backward)
    if size_average is not None or reduce is not None:
        reduction = legacy.legacy_get_string(size_average, reduce)
    twin = getattr(F, name)
    same_shape = input.shape == target.shape
    if (
        kernels_take(input, target, weight)
        and reduction in REDUCTION_CODES
        and (weight is None or (weight.shape == input.shape and not weight.requires_grad))
        and (same_shape or broadcast(input, target))
    ):
        if target.dtype in INTEGRAL:
            target = target.to(input.dtype)
        if takes_elements(input, target, None) and (weight is None or weight.dtype in FLOATING):
            if not same_shape:
                warn_of_broadcast(input, target)
                if backward == "inplace" and input.shape != torch.broadcast_shapes(input.shape, target.shape):
                    raise RuntimeError("backward='inplace' needs an input of the full, broadcast shape.")
            return run(
                name,
                input,
                target,
                weight,
                None,
                ((), None),
                REDUCTION_CODES[reduction],
                promoted(input, target, weight),
                backward,
            )
    return by_torch(twin, input, target, reduction=reduction, weight=weight)

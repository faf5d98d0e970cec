"""Binary cross-entropies of logits in which elements count less, the easier they are."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from fused_losses.call import EVERY_REDUCTION, REDUCTIONS, Backward, Call, PointwiseOptions
from fused_losses.dispatch import by_composed, by_override, is_overridden, kernels_take, run
from fused_losses.losses.checks import as_floating, check_backward, check_numbers, promoted, takes_elements
from fused_losses.losses.element_options import element_options
from fused_losses.losses.plans import plans
from fused_losses.names import ReductionName


def sigmoid_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: float = 0.25,
    gamma: float = 2,
    reduction: ReductionName = "none",
    *,
    weight: Tensor | None = None,
    ignore_index: float | None = None,
    normalizer: Tensor | float | None = None,
    backward: Backward = "fused",
) -> Tensor:
    r"""Focal loss of logits x: binary cross-entropy in which elements count less, the surer they are right.

    With :math:`p = \mathrm{sigmoid}(x)` and the targets' distance :math:`u = t (1 - p) + (1 - t) p`, it is
    :math:`-\alpha_t\, u^\gamma (t \log p + (1 - t) \log(1 - p))`, where
    :math:`\alpha_t = \alpha t + (1 - \alpha) (1 - t)`. From Lin et al., "Focal Loss for Dense Object
    Detection" (2017); signature and values are those of torchvision.ops.sigmoid_focal_loss. It is computed
    from logits, not from probabilities: right where these round to 0 or 1, and at infinite logits. For
    targets that require grad, it is composed of torch's operators.

    Args:
        inputs: logits, any shape.
        targets: in [0, 1] or `ignore_index`, shaped as inputs; integers are converted.
        alpha: the factor of positives, from 0 to 1, that of negatives being 1 - alpha; below 0 for none.
        gamma: the power, 0 or more; it need not be whole, nor 1 or more.
        reduction: "none", "mean" or "sum".
        weight: broadcastable to inputs.
        ignore_index: elements whose target equals this count neither in the loss nor in the mean's divisor.
        normalizer: what the mean divides by instead: a number, or a tensor of one, as the number of
            positives.
        backward: "fused": this call computes the gradient, too, and keeps it until the backward, in a buffer
            of the input's size. "recompute": the backward computes it from the operands, and nothing else is
            kept; it takes the place of "fused" where the upstream gradient must be known first: for
            reduction="none" and for float16. "inplace": the gradient overwrites the input, so that no buffer
            is needed.

    Raises:
        ValueError: inputs and targets of different shapes; an alpha above 1 or a gamma below 0; another
            reduction; a normalizer where nothing is divided, or of several numbers.
        TypeError: an option that is no number.

    Example:
        >>> logits, target = torch.tensor([0.0, 2.0, -1.0]), torch.tensor([1.0, 1.0, 0.0])
        >>> fused_losses.functional.sigmoid_focal_loss(logits, target)
        tensor([0.0433, 0.0005, 0.0170])
        >>> fused_losses.functional.sigmoid_focal_loss(logits, target, reduction="mean", normalizer=2)
        tensor(0.0304)
    """
    check_backward(backward)
    more: dict[str, Any] = {"ignore_index": ignore_index, "normalizer": normalizer}
    call = _plan_sigmoid_focal(inputs, targets, alpha, gamma, reduction, weight=weight, **more)
    if call is not None:
        return run(call, backward)
    keywords = {"alpha": alpha, "gamma": gamma, "reduction": reduction, "weight": weight, **more}
    if is_overridden(inputs, targets, weight, by_subclasses=False):
        result: Tensor = by_override(sigmoid_focal_loss, inputs, targets, **keywords, backward=backward)
        return result
    options = element_options(_focal_parameters(alpha, gamma), inputs, targets, reduction, **more)
    return by_composed("sigmoid_focal_loss", inputs, targets, weight, None, options, reduction)


@plans("sigmoid_focal_loss")
def _plan_sigmoid_focal(
    inputs: Tensor,
    targets: Tensor,
    alpha: float = 0.25,
    gamma: float = 2,
    reduction: str = "none",
    *,
    weight: Tensor | None = None,
    ignore_index: float | None = None,
    normalizer: Tensor | float | None = None,
) -> Call | None:
    parameters = _focal_parameters(alpha, gamma)
    return _plan(
        "sigmoid_focal_loss", parameters, inputs, targets, reduction, weight, ignore_index, normalizer
    )


def _focal_parameters(alpha: float, gamma: float) -> tuple[float, float]:
    check_numbers(alpha=alpha, gamma=gamma)
    if not alpha <= 1:
        raise ValueError(f"alpha must be between 0 and 1, or below 0 for none, but it is {alpha}")
    _check_power("gamma", gamma)
    return float(alpha), float(gamma)


def asymmetric_loss(
    input: Tensor,
    target: Tensor,
    gamma_neg: float = 4,
    gamma_pos: float = 1,
    clip: float | None = 0.05,
    eps: float = 1e-8,
    reduction: ReductionName = "sum",
    *,
    weight: Tensor | None = None,
    ignore_index: float | None = None,
    normalizer: Tensor | float | None = None,
    backward: Backward = "fused",
) -> Tensor:
    r"""Asymmetric loss of logits x, for many labels of which few apply: easy negatives count less or nothing.

    With :math:`p = \mathrm{sigmoid}(x)`, the clipped probability :math:`m = \max(p - c, 0)` and the targets'
    distance :math:`u = t (1 - p) + (1 - t) m`, it is
    :math:`-u^{\gamma_+ t + \gamma_- (1 - t)} (t \log p + (1 - t) \log(1 - m))`. Of probabilities below
    :math:`\epsilon`, the logarithm is that of :math:`\epsilon`. From Ridnik et al., "Asymmetric Loss For
    Multi-Label Classification" (2020); values and gradients are those of timm.loss.AsymmetricLossMultiLabel,
    whose gradient passes through the power, too. For targets that require grad, it is composed of torch's
    operators.

    Args:
        input: logits, any shape.
        target: in [0, 1] or `ignore_index`, shaped as input; integers are converted.
        gamma_neg: the power of negatives, 0 or more.
        gamma_pos: the power of positives, 0 or more.
        clip: the probability c up to which a negative counts nothing, from 0 to 1; None for 0.
        eps: the least probability that a logarithm is taken of, above 0.
        reduction: "none", "mean" or "sum".
        weight: broadcastable to input.
        ignore_index: elements whose target equals this count neither in the loss nor in the mean's divisor.
        normalizer: what the mean divides by instead: a number, or a tensor of one, as the number of rows.
        backward: "fused": this call computes the gradient, too, and keeps it until the backward, in a buffer
            of the input's size. "recompute": the backward computes it from the operands, and nothing else is
            kept; it takes the place of "fused" where the upstream gradient must be known first: for
            reduction="none" and for float16. "inplace": the gradient overwrites the input, so that no buffer
            is needed.

    Raises:
        ValueError: input and target of different shapes; a power below 0, or a probability out of range;
            another reduction; a normalizer where nothing is divided, or of several numbers.
        TypeError: an option that is no number.

    Example:
        >>> logits, target = torch.tensor([[0.0, 2.0, -1.0]]), torch.tensor([[1.0, 0.0, 0.0]])
        >>> fused_losses.functional.asymmetric_loss(logits, target, reduction="none")
        tensor([[3.4657e-01, 8.4641e-01, 5.6780e-04]])
    """
    check_backward(backward)
    more: dict[str, Any] = {"ignore_index": ignore_index, "normalizer": normalizer}
    powers: dict[str, Any] = {"gamma_neg": gamma_neg, "gamma_pos": gamma_pos, "clip": clip, "eps": eps}
    call = _plan_asymmetric(input, target, reduction=reduction, weight=weight, **powers, **more)
    if call is not None:
        return run(call, backward)
    if is_overridden(input, target, weight, by_subclasses=False):
        keywords: dict[str, Any] = {**powers, "reduction": reduction, "weight": weight, **more}
        result: Tensor = by_override(asymmetric_loss, input, target, **keywords, backward=backward)
        return result
    options = element_options(_asymmetric_parameters(**powers), input, target, reduction, **more)
    return by_composed("asymmetric_loss", input, target, weight, None, options, reduction)


@plans("asymmetric_loss")
def _plan_asymmetric(
    input: Tensor,
    target: Tensor,
    gamma_neg: float = 4,
    gamma_pos: float = 1,
    clip: float | None = 0.05,
    eps: float = 1e-8,
    reduction: str = "sum",
    *,
    weight: Tensor | None = None,
    ignore_index: float | None = None,
    normalizer: Tensor | float | None = None,
) -> Call | None:
    parameters = _asymmetric_parameters(gamma_neg, gamma_pos, clip, eps)
    return _plan("asymmetric_loss", parameters, input, target, reduction, weight, ignore_index, normalizer)


def _asymmetric_parameters(
    gamma_neg: float, gamma_pos: float, clip: float | None, eps: float
) -> tuple[float, ...]:
    clip = 0.0 if clip is None else clip
    check_numbers(gamma_neg=gamma_neg, gamma_pos=gamma_pos, clip=clip, eps=eps)
    _check_power("gamma_neg", gamma_neg)
    _check_power("gamma_pos", gamma_pos)
    if not 0 <= clip <= 1:
        raise ValueError(f"clip must be between 0 and 1, but it is {clip}")
    if not 0 < eps <= 1:
        raise ValueError(f"eps must be above 0 and at most 1, but it is {eps}")
    return float(gamma_neg), float(gamma_pos), float(clip), float(eps)


def _check_power(name: str, gamma: float) -> None:
    if not 0 <= gamma < math.inf:
        raise ValueError(f"{name} must be 0 or more, but it is {gamma}")


def _plan(
    name: str,
    parameters: tuple[float, ...],
    input: Tensor,
    target: Tensor,
    reduction: str,
    weight: Tensor | None,
    ignore_index: float | None,
    normalizer: Tensor | float | None,
) -> Call | None:
    if not (
        kernels_take(input, target, weight)
        and reduction in EVERY_REDUCTION
        and input.shape == target.shape
        and not target.requires_grad
    ):
        return None
    target = as_floating(target, input)
    if not takes_elements(input, target, weight):
        return None
    options = PointwiseOptions(parameters)
    if ignore_index is not None or normalizer is not None:
        options = element_options(parameters, input, target, reduction, ignore_index, normalizer)
    return Call(
        name,
        input,
        target,
        options,
        REDUCTIONS[reduction],
        promoted(input, target, weight),
        weight=weight,
    )

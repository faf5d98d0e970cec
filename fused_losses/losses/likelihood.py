"""Negative log-likelihoods and divergences."""

from __future__ import annotations

import torch
from torch import Tensor

from fused_losses import unpatched as F
from fused_losses.call import EVERY_REDUCTION, REDUCTIONS, Backward, Call, PointwiseOptions, Reduction
from fused_losses.dispatch import by_torch, is_overridden, kernels_take, run
from fused_losses.losses.checks import (
    are_flags,
    are_numbers,
    as_floating,
    check_backward,
    promoted,
    promoted_by_operators,
    reduction_of,
    takes_elements,
    warn,
)
from fused_losses.losses.plans import plans
from fused_losses.names import DivergenceReductionName, ReductionName
from fused_losses.shapes import broadcast_shape


def poisson_nll_loss(
    input: Tensor,
    target: Tensor,
    log_input: bool = True,
    full: bool = False,
    size_average: bool | None = None,
    eps: float = 1e-8,
    reduce: bool | None = None,
    reduction: ReductionName = "mean",
    *,
    backward: Backward = "fused",
) -> Tensor:
    r"""Negative log-likelihood of counts under Poisson distributions.

    :math:`e^x - t x` for the logarithm x of the rate, :math:`x - t \log(x + \epsilon)` for the rate itself;
    see :func:`torch.nn.functional.poisson_nll_loss`.

    Args:
        input: logarithms of rates, or rates, any shape.
        target: counts, broadcastable with input.
        log_input: whether input holds logarithms.
        full: whether to add Stirling's approximation of :math:`\log t!`, for targets above 1.
        size_average: deprecated, see `reduction`.
        eps: added to a rate before its logarithm is taken.
        reduce: deprecated, see `reduction`.
        reduction: "none", "mean" or "sum".
        backward: "fused": this call computes the gradient, too, and keeps it until the backward, in a buffer
            of the input's size. "recompute": the backward computes it from the operands, and nothing else is
            kept; it takes the place of "fused" where the upstream gradient must be known first: for
            reduction="none" and for float16. "inplace": the gradient overwrites the input, so that no buffer
            is needed.

    Raises:
        RuntimeError: shapes that do not broadcast.
        ValueError: another reduction.

    Example:
        >>> log_rates, counts = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0])
        >>> fused_losses.functional.poisson_nll_loss(log_rates, counts)
        tensor(0.8591)
    """
    reduction = reduction_of(backward, reduction, size_average, reduce)
    call = _plan_poisson_nll(input, target, log_input, full, eps, reduction)
    if call is not None:
        return run(call, backward)
    return by_torch(
        F.poisson_nll_loss, input, target, log_input=log_input, full=full, eps=eps, reduction=reduction
    )


@plans("poisson_nll_loss")
def _plan_poisson_nll(
    input: Tensor,
    target: Tensor,
    log_input: bool = True,
    full: bool = False,
    eps: float = 1e-8,
    reduction: str = "mean",
) -> Call | None:
    if not (
        kernels_take(input, target)
        and are_flags(log_input, full)
        and are_numbers(eps)
        and reduction in EVERY_REDUCTION
        and broadcast_shape(input, target) is not None
    ):
        return None
    target = as_floating(target, input)
    if not takes_elements(input, target):
        return None
    return Call(
        "poisson_nll_loss",
        input,
        target,
        PointwiseOptions((float(log_input), float(full), float(eps))),
        REDUCTIONS[reduction],
        promoted(input, target),
    )


def gaussian_nll_loss(
    input: Tensor,
    target: Tensor,
    var: Tensor | float,
    full: bool = False,
    eps: float = 1e-6,
    reduction: ReductionName = "mean",
    *,
    backward: Backward = "fused",
) -> Tensor:
    r"""Negative log-likelihood of observations under normal distributions.

    :math:`\frac{1}{2} (\log v + (x - t)^2 / v)` with :math:`v = \max(\mathrm{var}, \epsilon)`, whose gradient
    passes to var as if there were no maximum; see :func:`torch.nn.functional.gaussian_nll_loss`.

    Args:
        input: means, any shape.
        target: observations, broadcastable with input.
        var: variances: shaped as input, or with a last dimension of 1 or none, or a number.
        full: whether to add :math:`\frac{1}{2} \log 2\pi`.
        eps: the smallest variance.
        reduction: "none", "mean" or "sum".
        backward: "fused": this call computes the gradient, too, and keeps it until the backward, in a buffer
            of the input's size. "recompute": the backward computes it from the operands, and nothing else is
            kept; it takes the place of "fused" where the upstream gradient must be known first: for
            reduction="none" and for float16. "inplace": the gradient overwrites the input, so that no buffer
            is needed.

    Raises:
        ValueError: a negative variance, one of another shape, another reduction.
        RuntimeError: shapes that do not broadcast.

    Example:
        >>> fused_losses.functional.gaussian_nll_loss(torch.zeros(3), torch.ones(3), torch.ones(3))
        tensor(0.5000)
    """
    check_backward(backward)
    call = _plan_gaussian_nll(input, target, var, full, eps, reduction)
    if call is not None:
        return run(call, backward)
    return by_torch(F.gaussian_nll_loss, input, target, var, full=full, eps=eps, reduction=reduction)


@plans("gaussian_nll_loss")
def _plan_gaussian_nll(
    input: Tensor,
    target: Tensor,
    var: Tensor | float,
    full: bool = False,
    eps: float = 1e-6,
    reduction: str = "mean",
) -> Call | None:
    if not (
        kernels_take(input, target, None if isinstance(var, float) else var)
        and are_flags(full)
        and are_numbers(eps)
        and eps == eps  # by NaN, torch makes all variances NaN
        and reduction in EVERY_REDUCTION
        and (variances := _variances(input, var)) is not None
        and broadcast_shape(input, target, variances) is not None
    ):
        return None
    target = as_floating(target, input)
    if not (takes_elements(input, target) and takes_elements(input, variances)):
        return None
    return Call(
        "gaussian_nll_loss",
        input,
        target,
        PointwiseOptions((float(full), float(eps))),
        REDUCTIONS[reduction],
        promoted_by_operators(input, target, variances),
        extra=variances,
    )


def _variances(input: Tensor, var: Tensor | float) -> Tensor | None:
    """The variances in a shape that broadcasts with input; None for what torch does not take."""
    if isinstance(var, float):
        # An operand without dimensions, which is broadcast to every element.
        return input.new_full((), var) if var >= 0 and input.dim() else None
    if var.shape == input.shape:
        return var
    if var.shape == input.shape[:-1]:
        return var.unsqueeze(-1)
    differing = [mine for mine, theirs in zip(var.shape, input.shape, strict=False) if mine != theirs]
    return var if var.dim() == input.dim() and differing == [1] else None


def kl_div(
    input: Tensor,
    target: Tensor,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: DivergenceReductionName = "mean",
    log_target: bool = False,
    *,
    backward: Backward = "fused",
) -> Tensor:
    r"""Kullback-Leibler divergence of log-probabilities x from probabilities t.

    :math:`t (\log t - x)`, or :math:`e^t (t - x)` where the target holds logarithms; see
    :func:`torch.nn.functional.kl_div`.

    Args:
        input: log-probabilities, any shape.
        target: probabilities or their logarithms, broadcastable with input.
        size_average: deprecated, see `reduction`.
        reduce: deprecated, see `reduction`.
        reduction: "none", "sum", "batchmean" (the sum over the size of the first dimension: the divergence),
            or "mean" (over all elements, with torch's warning that this is not the divergence).
        log_target: whether target holds logarithms.
        backward: "fused": this call computes the gradient, too, and keeps it until the backward, in a buffer
            of the input's size. "recompute": the backward computes it from the operands, and nothing else is
            kept; it takes the place of "fused" where the upstream gradient must be known first: for
            reduction="none" and for float16. "inplace": the gradient overwrites the input, so that no buffer
            is needed.

    Raises:
        RuntimeError: shapes that do not broadcast; integers.
        ValueError: another reduction.

    Example:
        >>> log_probabilities = torch.tensor([[0.5, 0.5]]).log()
        >>> target = torch.tensor([[0.25, 0.75]])
        >>> fused_losses.functional.kl_div(log_probabilities, target, reduction="batchmean")
        tensor(0.1308)
    """
    named = size_average is None and reduce is None
    reduction = reduction_of(backward, reduction, size_average, reduce)
    call = _plan_kl_div(input, target, reduction, log_target)
    if reduction != "mean" or (call is None and is_overridden(input, target)):
        if call is not None:
            return run(call, backward)
        return by_torch(F.kl_div, input, target, reduction=reduction, log_target=log_target)
    if named:
        warn(
            "reduction: 'mean' divides the total loss by both the batch size and the support size."
            "'batchmean' divides only by the batch size, and aligns with the KL div math definition."
            "'mean' will be changed to behave the same as 'batchmean' in the next major release."
        )
    if call is not None:
        return run(call, backward)
    # Torch's function warns, too, but would name a line of this package; its operator does not.
    return by_torch(torch.kl_div, input, target, REDUCTIONS[reduction], log_target=log_target)


@plans("kl_div")
def _plan_kl_div(
    input: Tensor, target: Tensor, reduction: str = "mean", log_target: bool = False
) -> Call | None:
    if not (
        kernels_take(input, target)
        and are_flags(log_target)
        and (reduction in EVERY_REDUCTION or reduction == "batchmean")
        and broadcast_shape(input, target) is not None
        and takes_elements(input, target)
    ):
        return None
    return Call(
        "kl_div",
        input,
        target,
        PointwiseOptions((float(log_target),)),
        Reduction.BATCH_MEAN if reduction == "batchmean" else REDUCTIONS[reduction],
        promoted(input, target),
    )

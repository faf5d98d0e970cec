"""Losses that are zero beyond a margin."""

from __future__ import annotations

from torch import Tensor

from fused_losses import unpatched as F
from fused_losses.call import EVERY_REDUCTION, REDUCTIONS, Backward, Call, PointwiseOptions
from fused_losses.dispatch import by_torch, kernels_take, run
from fused_losses.losses.checks import are_numbers, as_floating, promoted, reduction_of, takes_elements
from fused_losses.losses.plans import plans
from fused_losses.names import ReductionName
from fused_losses.shapes import broadcast_shape


def hinge_embedding_loss(
    input: Tensor,
    target: Tensor,
    margin: float = 1.0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: ReductionName = "mean",
    *,
    backward: Backward = "fused",
) -> Tensor:
    r"""Distances x of pairs that are to be close (t = 1) or far from each other (t = -1).

    :math:`x` where t is 1, :math:`\max(0, m - x)` where it is -1, and their sum for any other t; see
    :func:`torch.nn.functional.hinge_embedding_loss`.

    Args:
        input: distances, any shape.
        target: broadcastable with input.
        margin: the distance that is far enough.
        size_average: deprecated, see `reduction`.
        reduce: deprecated, see `reduction`.
        reduction: "none", "mean" or "sum".
        backward: "fused": this call computes the gradient, too, and keeps it until the backward, in a buffer
            of the input's size. "recompute": the backward computes it from the operands, and nothing else is
            kept; it takes the place of "fused" where the upstream gradient must be known first: for
            reduction="none" and for float16. "inplace": the gradient overwrites the input, so that no buffer
            is needed.

    Raises:
        RuntimeError: shapes that do not broadcast.

    Example:
        >>> distances, target = torch.tensor([0.5, 0.25]), torch.tensor([1, -1])
        >>> fused_losses.functional.hinge_embedding_loss(distances, target)
        tensor(0.6250)
    """
    reduction = reduction_of(backward, reduction, size_average, reduce)
    call = _plan_hinge_embedding(input, target, margin, reduction)
    if call is not None:
        return run(call, backward)
    return by_torch(F.hinge_embedding_loss, input, target, margin=margin, reduction=reduction)


@plans("hinge_embedding_loss")
def _plan_hinge_embedding(
    input: Tensor, target: Tensor, margin: float = 1.0, reduction: str = "mean"
) -> Call | None:
    if not (
        kernels_take(input, target)
        and are_numbers(margin)
        and reduction in EVERY_REDUCTION
        and broadcast_shape(input, target) is not None
    ):
        return None
    target = as_floating(target, input)
    if not takes_elements(input, target):
        return None
    return Call(
        "hinge_embedding_loss",
        input,
        target,
        PointwiseOptions((float(margin),)),
        REDUCTIONS[reduction],
        promoted(input),  # the target is only asked which case it is
    )


def margin_ranking_loss(
    input1: Tensor,
    input2: Tensor,
    target: Tensor,
    margin: float = 0,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: ReductionName = "mean",
    *,
    backward: Backward = "fused",
) -> Tensor:
    r"""Whether input1 is ranked above input2 (t = 1) or below it (t = -1).

    :math:`\max(0, m - t (x_1 - x_2))`; see :func:`torch.nn.functional.margin_ranking_loss`.

    Args:
        input1: scores, any shape.
        input2: of as many dimensions, broadcastable with input1; so is target.
        target: 1 or -1.
        margin: how far apart the scores should be.
        size_average: deprecated, see `reduction`.
        reduce: deprecated, see `reduction`.
        reduction: "none", "mean" or "sum".
        backward: "fused": this call computes the gradient, too, and keeps it until the backward, in a buffer
            of the input's size. "recompute": the backward computes it from the operands, and nothing else is
            kept; it takes the place of "fused" where the upstream gradient must be known first: for
            reduction="none" and for float16. "inplace": the gradient overwrites the input, so that no buffer
            is needed.

    Raises:
        RuntimeError: numbers of dimensions that differ, shapes that do not broadcast.

    Example:
        >>> first, second = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 3.0])
        >>> fused_losses.functional.margin_ranking_loss(first, second, torch.tensor([1, 1]), margin=0.5)
        tensor(0.7500)
    """
    reduction = reduction_of(backward, reduction, size_average, reduce)
    call = _plan_margin_ranking(input1, input2, target, margin, reduction)
    if call is not None:
        return run(call, backward)
    return by_torch(F.margin_ranking_loss, input1, input2, target, margin=margin, reduction=reduction)


@plans("margin_ranking_loss")
def _plan_margin_ranking(
    input1: Tensor, input2: Tensor, target: Tensor, margin: float = 0, reduction: str = "mean"
) -> Call | None:
    if not (
        kernels_take(input1, input2, target)
        and are_numbers(margin)
        and reduction in EVERY_REDUCTION
        and input1.dim() == input2.dim() == target.dim()
        and broadcast_shape(input1, input2, target) is not None
    ):
        return None
    signs = as_floating(target, input1)
    if not (takes_elements(input1, input2) and takes_elements(input1, signs)):
        return None
    return Call(
        "margin_ranking_loss",
        input1,
        input2,
        PointwiseOptions((float(margin),)),
        REDUCTIONS[reduction],
        promoted(input1, input2, signs),
        extra=signs,
    )

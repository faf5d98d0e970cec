"""Losses of distances between vectors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fused_losses import unpatched as F
from fused_losses.call import EVERY_REDUCTION, REDUCTIONS, Backward, Call, Parameters
from fused_losses.dispatch import by_torch, kernels_take, run
from fused_losses.losses.checks import (
    FLOATING,
    are_flags,
    are_numbers,
    as_floating,
    check_backward,
    promoted,
    promoted_by_operators,
    reduction_of,
)
from fused_losses.losses.plans import plans
from fused_losses.names import ReductionName
from fused_losses.reference import cosine_distance as cosine_distance
from fused_losses.shapes import broadcast_shape

DistanceFunction = Callable[[Tensor, Tensor], Tensor]


def euclidean_distance(x1: Tensor, x2: Tensor) -> Tensor:
    """The 2-norm of x1 - x2 along the last dimension.

    Example:
        >>> x1, x2 = torch.zeros(2, 2), torch.tensor([[3.0, 4.0], [0.0, 1.0]])
        >>> fused_losses.functional.euclidean_distance(x1, x2)
        tensor([5., 1.])
    """
    return F.pairwise_distance(x1, x2, p=2, eps=0)


class _Distance(NamedTuple):
    """A distance that kernels know: the p-norm of x1 - x2 + eps, or 1 - cosine similarity."""

    p: float = 2.0
    eps: float = 1e-6
    cosine: bool = False


def triplet_margin_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float = 1.0,
    p: float = 2,
    eps: float = 1e-6,
    swap: bool = False,
    size_average: bool | None = None,
    reduce: bool | None = None,
    reduction: ReductionName = "mean",
    *,
    backward: Backward = "fused",
) -> Tensor:
    r"""Whether vectors are nearer to their positives than to their negatives.

    :math:`\max(0, d(a, p) - d(a, n) + m)` with :math:`d(x, y) = \|x - y + \epsilon\|_p`; see
    :func:`torch.nn.functional.triplet_margin_loss`.

    Args:
        anchor: vectors, (..., D).
        positive: of as many dimensions, broadcastable with anchor; so is negative.
        negative: vectors that should be farther from the anchor.
        margin: by how much they should, above 0.
        p: of the norm: any number, infinity too.
        eps: added to every difference.
        swap: take :math:`\min(d(a, n), d(p, n))` for :math:`d(a, n)`.
        size_average: deprecated, see `reduction`.
        reduce: deprecated, see `reduction`.
        reduction: "none", "mean" (over vectors) or "sum".
        backward: "fused": this call computes the gradient, too, and keeps it until the backward, in buffers
            of the operands' sizes. "recompute": the backward computes it from the operands, and nothing else
            is kept; it takes the place of "fused" where the upstream gradient must be known first: for
            reduction="none" and for float16. "inplace": the gradient of anchor overwrites it.

    Raises:
        ValueError: a margin that is not above 0.
        RuntimeError: numbers of dimensions that differ, shapes that do not broadcast.

    Example:
        >>> anchor, positive = torch.zeros(1, 2), torch.tensor([[3.0, 4.0]])
        >>> negative = torch.tensor([[0.0, 2.0]])
        >>> fused_losses.functional.triplet_margin_loss(anchor, positive, negative)
        tensor(4.0000)
    """
    reduction = reduction_of(backward, reduction, size_average, reduce)
    call = _plan_triplet_margin(anchor, positive, negative, margin, p, eps, swap, reduction)
    if call is not None:
        return run(call, backward)
    return by_torch(
        F.triplet_margin_loss,
        anchor,
        positive,
        negative,
        margin=margin,
        p=p,
        eps=eps,
        swap=swap,
        reduction=reduction,
    )


@plans("triplet_margin_loss")
def _plan_triplet_margin(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float = 1.0,
    p: float = 2,
    eps: float = 1e-6,
    swap: bool = False,
    reduction: str = "mean",
) -> Call | None:
    if not (
        are_numbers(margin, p, eps)
        and margin > 0
        and are_flags(swap)
        and kernels_take(anchor, positive, negative)
        and _takes_vectors(anchor, positive, negative, p)
        and reduction in EVERY_REDUCTION
    ):
        return None
    return Call(
        "triplet_margin_loss",
        anchor,
        positive,
        Parameters((float(margin), float(p), float(eps), float(swap))),
        REDUCTIONS[reduction],
        promoted(anchor, positive, negative),
        extra=negative,
    )


def triplet_margin_with_distance_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    distance_function: DistanceFunction | None = None,
    margin: float = 1.0,
    swap: bool = False,
    reduction: ReductionName = "mean",
    backward: Backward = "fused",
) -> Tensor:
    r"""As :func:`triplet_margin_loss`, with any function as the distance.

    Fused for :func:`torch.nn.functional.pairwise_distance` (a :func:`functools.partial` of it, too),
    :class:`torch.nn.PairwiseDistance`, and :func:`cosine_distance` and :func:`euclidean_distance` of this
    module. Any other function runs in torch. See
    :func:`torch.nn.functional.triplet_margin_with_distance_loss`.

    Args:
        anchor: vectors, (..., D).
        positive: of as many dimensions, broadcastable with anchor; so is negative.
        negative: vectors that should be farther from the anchor.
        distance_function: from two tensors of vectors to distances; pairwise_distance if not given.
        margin: by how much negatives should be farther, above 0.
        swap: take :math:`\min(d(a, n), d(p, n))` for :math:`d(a, n)`.
        reduction: "none", "mean" (over vectors) or "sum".
        backward: "fused": this call computes the gradient, too, and keeps it until the backward, in buffers
            of the operands' sizes. "recompute": the backward computes it from the operands, and nothing else
            is kept; it takes the place of "fused" where the upstream gradient must be known first: for
            reduction="none" and for float16. "inplace": the gradient of anchor overwrites it.

    Raises:
        ValueError: a margin that is not above 0, another reduction.
        RuntimeError: numbers of dimensions that differ, shapes that do not broadcast.

    Example:
        >>> from fused_losses.functional import cosine_distance, triplet_margin_with_distance_loss
        >>> anchor, positive, negative = torch.eye(3).unsqueeze(1)  # one triplet of vectors of 3 elements
        >>> triplet_margin_with_distance_loss(anchor, positive, negative, distance_function=cosine_distance)
        tensor(1.)
    """
    check_backward(backward)
    call = _plan_triplet_margin_with_distance(
        anchor,
        positive,
        negative,
        distance_function=distance_function,
        margin=margin,
        swap=swap,
        reduction=reduction,
    )
    if call is not None:
        return run(call, backward)
    return by_torch(
        F.triplet_margin_with_distance_loss,
        anchor,
        positive,
        negative,
        distance_function=distance_function,
        margin=margin,
        swap=swap,
        reduction=reduction,
    )


@plans("triplet_margin_with_distance_loss")
def _plan_triplet_margin_with_distance(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    *,
    distance_function: DistanceFunction | None = None,
    margin: float = 1.0,
    swap: bool = False,
    reduction: str = "mean",
) -> Call | None:
    distance = _known_distance(distance_function)
    if not (
        distance is not None
        and are_numbers(margin)
        and margin > 0
        and are_flags(swap)
        and kernels_take(anchor, positive, negative)
        and _takes_vectors(anchor, positive, negative, distance.p)
        and reduction in EVERY_REDUCTION
    ):
        return None
    p, eps, cosine = distance
    return Call(
        "triplet_margin_with_distance_loss",
        anchor,
        positive,
        Parameters((float(margin), float(p), float(eps), float(swap), float(cosine))),
        REDUCTIONS[reduction],
        promoted_by_operators(anchor, positive, negative),
        extra=negative,
    )


def cosine_embedding_loss(
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
    r"""Pairs of vectors that are to point the same way (t = 1) or not (t = -1).

    :math:`1 - \cos(x_1, x_2)` where t is 1, :math:`\max(0, \cos(x_1, x_2) - m)` where it is -1, 0 for any
    other; see :func:`torch.nn.functional.cosine_embedding_loss`.

    Args:
        input1: vectors, (N, D) or (D).
        input2: of as many dimensions, broadcastable with input1.
        target: (N), or () for (D).
        margin: the cosine that is far enough.
        size_average: deprecated, see `reduction`.
        reduce: deprecated, see `reduction`.
        reduction: "none", "mean" (over vectors) or "sum".
        backward: "fused": this call computes the gradient, too, and keeps it until the backward, in buffers
            of the operands' sizes. "recompute": the backward computes it from the operands, and nothing else
            is kept; it takes the place of "fused" where the upstream gradient must be known first: for
            reduction="none" and for float16. "inplace": the gradient of input1 overwrites it.

    Raises:
        RuntimeError: other numbers of dimensions, shapes that do not broadcast.

    Example:
        >>> first, second = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]])
        >>> fused_losses.functional.cosine_embedding_loss(first, second, torch.tensor([1]))
        tensor(0.2929)
    """
    reduction = reduction_of(backward, reduction, size_average, reduce)
    call = _plan_cosine_embedding(input1, input2, target, margin, reduction)
    if call is not None:
        return run(call, backward)
    return by_torch(F.cosine_embedding_loss, input1, input2, target, margin=margin, reduction=reduction)


@plans("cosine_embedding_loss")
def _plan_cosine_embedding(
    input1: Tensor, input2: Tensor, target: Tensor, margin: float = 0, reduction: str = "mean"
) -> Call | None:
    if not (
        kernels_take(input1, input2, target)
        and target.dim() == input1.dim() - 1 <= 1
        and are_numbers(margin)
        and _takes_vectors(input1, input2, signs := as_floating(target, input1).unsqueeze(-1))
        # Where one of them has a single number, torch takes the norm of that number.
        and input1.shape[-1] == input2.shape[-1]
        and reduction in EVERY_REDUCTION
    ):
        return None
    return Call(
        "cosine_embedding_loss",
        input1,
        input2,
        Parameters((float(margin),)),
        REDUCTIONS[reduction],
        promoted(input1, input2),  # the target is only asked which case it is
        extra=signs,
    )


def _takes_vectors(input: Tensor, other: Tensor, third: Tensor, p: float = 2) -> bool:
    """Whether the losses of vectors are defined on operands (..., D) and the p-norm.

    Kernels are not on the 0-norm, for which torch has no gradient.
    """
    if p == 0 or not 0 < input.dim() == other.dim() == third.dim():
        return False
    shape = broadcast_shape(input, other, third)
    return (
        shape is not None
        and shape[-1] > 0
        and input.dtype in FLOATING
        and other.dtype in FLOATING
        and third.dtype in FLOATING
    )


def _known_distance(function: DistanceFunction | None) -> _Distance | None:
    """The distance that a user's function computes, if kernels know it."""
    if function is None or function is F.pairwise_distance:
        return _Distance()
    if function is cosine_distance:
        return _Distance(cosine=True)
    if function is euclidean_distance:
        return _Distance(eps=0.0)
    if type(function) is torch.nn.PairwiseDistance and not function.keepdim:
        return _Distance(function.norm, function.eps)
    if (
        isinstance(function, partial)
        and function.func is F.pairwise_distance
        and not function.args
        and function.keywords.keys() <= {"p", "eps"}
    ):
        return _Distance(**function.keywords)
    return None

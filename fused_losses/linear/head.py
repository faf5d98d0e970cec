"""A linear layer, and a call of a loss over it, as values."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_losses.call import Call, Parameters, PointwiseOptions, SoftmaxOptions, accumulate_dtype
from fused_losses.dispatch import kernels_take
from fused_losses.losses.checks import FLOATING
from fused_losses.losses.plans import PLANS
from fused_losses.modes import autocasts
from fused_losses.registry import LOSSES, OPTIONS
from fused_losses.shapes import losses_shape


class Head(NamedTuple):
    """A linear layer and its input, which make the logits input @ weight.T + bias."""

    input: Tensor
    """(N, D)."""
    weight: Tensor
    """(V, D), or (C, d1, ..., D) for a loss over more dimensions than classes; V is C d1 ...."""
    bias: Tensor | None
    """(V) or (C, d1, ...)."""

    @property
    def classes(self) -> torch.Size:
        """(V) or (C, d1, ...)."""
        return self.weight.shape[:-1]

    @property
    def accumulate_dtype(self) -> torch.dtype:
        """The dtype of sums over the head's numbers."""
        return accumulate_dtype(self.input.dtype)


def is_head(head: Head) -> bool:
    """Whether these are the operands of a linear layer that kernels can take chunk by chunk."""
    input, weight, bias = head
    same_dtype = all(x is None or x.dtype is input.dtype for x in (weight, bias))
    return (
        kernels_take(input, weight, bias)
        and input.dtype in FLOATING
        and (same_dtype or autocasts(input))
        and input.dim() > 0
        and weight.dim() > 1
        and input.shape[-1] == weight.shape[-1]
        and input.numel() > 0
        and weight.numel() > 0
        and (bias is None or bias.shape == head.classes)
    )


def logits_like(head: Head, dtype: torch.dtype) -> Tensor:
    """A tensor with the shape (N, V) or (N, C, d1, ...) of the logits, and the memory of a single number."""
    shape = head.input.shape[:-1] + head.classes
    return torch.empty((), dtype=dtype, device=head.input.device).expand(shape)


@dataclass(frozen=True)
class HeadCall:
    """A call of a loss over a head, chunk by chunk."""

    head: Head
    call: Call
    """The call of the loss; its input has no memory: it is `logits_like` the head's."""
    dtype: torch.dtype
    """The loss's dtype."""
    chunk_rows: int
    """How many rows have logits at a time."""

    @property
    def logits_dtype(self) -> torch.dtype:
        """The dtype of the workspace."""
        return self.call.input.dtype

    def to_arguments(self) -> tuple[Any, ...]:
        """The arguments of the operators, which take no values but tensors, numbers and strings."""
        call, options = self.call, self.call.options
        softmax = options if isinstance(options, SoftmaxOptions) else SoftmaxOptions()
        parameters = () if isinstance(options, SoftmaxOptions) else options.parameters
        return (
            *self.head,
            call.name,
            *call.operands[1:],
            parameters,
            None if isinstance(options, Parameters) else options.ignore_index,
            *softmax[1:3],
            getattr(options, "normalizer", None),
            call.reduction,
            self.dtype,
            self.logits_dtype,
            self.chunk_rows,
        )

    @staticmethod
    def from_arguments(*arguments: Any) -> HeadCall:
        """The inverse of `to_arguments`."""
        *head, name, target, weight, extra, parameters, ignore_index = arguments[:9]
        smoothing, terms, normalizer, reduction, dtype, logits_dtype, chunk_rows = arguments[9:]
        options: Any = Parameters(tuple(parameters))
        kind = OPTIONS[LOSSES[name].family]
        if kind is SoftmaxOptions:
            options = SoftmaxOptions(ignore_index, smoothing, tuple(terms), normalizer)
        elif kind is PointwiseOptions:
            options = PointwiseOptions(tuple(parameters), ignore_index, normalizer)
        logits = logits_like(Head(*head), logits_dtype)
        call = Call(name, logits, target, options, reduction, weight=weight, extra=extra)
        return HeadCall(Head(*head), call, dtype, chunk_rows)


def plan(
    loss: str, head: Head, logits_dtype: torch.dtype, reduction: str, keywords: dict[str, Any]
) -> Call | None:
    """The call of a loss over a head; None if kernels do not take it, or its result needs a further operator.

    Args:
        loss: its name in the registry.
        head: the layer.
        logits_dtype: the dtype of the workspace. Class weights, as other floating vectors, are cast to it.
        reduction: "none", "mean", "sum" or, for kl_div, "batchmean".
        keywords: the other arguments of the loss's function, by name.
    """
    keywords = {
        name: value.to(logits_dtype)
        if isinstance(value, Tensor) and value.is_floating_point() and value.dim() == 1
        else value
        for name, value in keywords.items()
    }
    name = LOSSES[loss].target_name
    target = keywords.get(name)
    if isinstance(target, Tensor) and target.is_sparse:
        # A chunk of its rows will be dense, so it is planned as a dense tensor, without the memory of one.
        keywords[name] = torch.empty((), dtype=target.dtype, device=target.device).expand(target.shape)
    try:
        call = PLANS[loss](logits_like(head, logits_dtype), **keywords, reduction=reduction)
    except TypeError:  # arguments that the loss does not have: its function says so, in its own name
        return None
    if call is None or call.finish is not None:
        return None
    if LOSSES[loss].family == "pointwise" and losses_shape("pointwise", *call.operands) != call.input.shape:
        return None  # an operand makes more elements of the logits, which no chunk of rows has
    if not isinstance(target, Tensor) or not target.is_sparse:
        return call
    if "input2" not in keywords:
        return replace(call, target=target.to(call.target.dtype))
    # The call's target is input2, and this one the third operand, which has another shape for losses of rows.
    signs = call.extra
    if signs is None or signs.shape != target.shape:
        return None
    return replace(call, extra=target.to(signs.dtype))

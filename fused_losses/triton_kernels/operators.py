"""The four operators of a loss, for any engine: they make the results and ask the engine to write them.

Results are made by the functions that tell compilers what operators return, which know shapes, dtypes and
strides: so what compilers are told is what there is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from fused_losses.fakes import results_of
from fused_losses.registry import (
    ARGMAX,
    EXTRA_GRADIENT,
    INPUT_GRADIENT,
    STATISTICS,
    TARGET_GRADIENT,
    Loss,
)

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
"""With respect to input, target and extra: in the shape that the operands broadcast to, for pointwise losses
and those of vectors; in the operand's own shape for the others. Each has its operand's dtype."""


@dataclass(frozen=True)
class EngineCall:
    """What an engine is asked to do: read the operands, and write each result that is not None.

    "Positions" are what has a loss of its own: elements for pointwise losses, (N, d1, ...) or () for softmax,
    (N) or () for class margins, (...) for losses of vectors of shape (..., D).
    """

    loss: Loss
    input: Tensor
    """(...) for pointwise losses, (N, C, d1, ...) or (C) for softmax, (N, C) or (C) for class margins,
    (..., D) for losses of vectors; any floating dtype."""
    target: Tensor
    """Broadcastable with the input, or labels of positions, int64 or uint8; see `fused_losses.call`."""
    weight: Tensor | None
    """Broadcastable with the input, or (C)."""
    extra: Tensor | None
    """The third operand; in a backward of a loss that has statistics: these."""
    options: tuple[Any, ...]
    """What the family's operators take between their tensors and the reduction; see `fused_losses.call`."""
    reduction: int
    """One of the numbers of `fused_losses.call.Reduction`."""
    upstream: Tensor | None = None
    """The gradient of the loss, in a backward: () if that is reduced, else one for each position."""
    ready: bool = False
    """Gradients are there for an upstream gradient of 1: if it is 1, nothing is to be done."""
    value: Tensor | None = None
    """The loss, in the loss's dtype: () if it is reduced, else one for each position."""
    statistics: Tensor | None = None
    """(2 or 3, positions), float32 (float64 for float64): what a softmax keeps of each position."""
    argmax: Tensor | None = None
    """The class of each position's largest logit, int64."""
    gradients: Gradients = (None, None, None)

    @property
    def losses(self) -> Tensor | None:
        """Where the loss of each position goes, if it is not reduced."""
        return None if self.reduction else self.value

    @property
    def reduced_loss(self) -> Tensor | None:
        """Where the sum of the losses goes, divided, if it is reduced."""
        return self.value if self.reduction else None

    @property
    def losses_upstream(self) -> Tensor | None:
        """The upstream gradient of each position's loss, if that is not reduced."""
        return None if self.reduction else self.upstream

    @property
    def reduced_upstream(self) -> Tensor | None:
        """The upstream gradient of the reduced loss."""
        return self.upstream if self.reduction else None

    @property
    def wants_gradients(self) -> bool:
        """Whether the gradient of any operand is to be written."""
        return any(gradient is not None for gradient in self.gradients)


Engine = Callable[[EngineCall], None]


def on_their_device(operator: Callable[..., Any]) -> Callable[..., Any]:
    """The operator, for tensors of one device, which is the current one while it runs."""

    @functools.wraps(operator)
    def run(*arguments: Any) -> Any:
        flat = chain.from_iterable(x if isinstance(x, list) else (x,) for x in arguments)
        with torch.cuda.device_of(next(x for x in flat if isinstance(x, Tensor))):
            return operator(*arguments)

    return run


def operators_for(loss: Loss, engine: Engine) -> tuple[Callable[..., Any], ...]:
    """The loss's operators, in the order of `fused_losses.ops.Operators`."""
    make_results, make_results_inplace, make_gradients = results_of(loss)

    def forward(*arguments: Any) -> list[Tensor]:
        results: list[Tensor] = make_results(*arguments)
        engine(_forward_call(loss, arguments, results, arguments[-1]))
        return results

    def forward_inplace(*arguments: Any) -> list[Tensor]:
        results: list[Tensor] = make_results_inplace(*arguments)
        call = _forward_call(loss, arguments, results, arguments[-1] & ~INPUT_GRADIENT)
        engine(replace(call, gradients=(call.input, *call.gradients[1:])))
        return results

    def backward(upstream: Tensor, *arguments: Any) -> list[Tensor]:
        gradients: list[Tensor] = make_gradients(upstream, *arguments)
        engine(_backward_call(loss, arguments, gradients, upstream))
        return gradients

    def backward_into(into: list[Tensor], ready: bool, upstream: Tensor, *arguments: Any) -> None:
        engine(replace(_backward_call(loss, arguments, into, upstream), ready=ready))

    return forward, forward_inplace, backward, backward_into


def _forward_call(loss: Loss, arguments: tuple[Any, ...], results: list[Tensor], wanted: int) -> EngineCall:
    operands, (*options, reduction, _, _) = arguments[:4], arguments[4:]
    value, *kept = results
    statistics = kept.pop(0) if loss.has_statistics and wanted & STATISTICS else None
    argmax = kept.pop(0) if loss.has_statistics and wanted & ARGMAX else None
    return EngineCall(
        loss,
        *operands,
        tuple(options),
        reduction,
        value=value,
        statistics=statistics,
        argmax=argmax,
        gradients=_by_operand(wanted, kept),
    )


def _backward_call(
    loss: Loss, arguments: tuple[Any, ...], gradients: list[Tensor], upstream: Tensor
) -> EngineCall:
    operands, (*options, reduction, wanted) = arguments[:4], arguments[4:]
    return EngineCall(
        loss,
        *operands,
        tuple(options),
        reduction,
        upstream=upstream,
        gradients=_by_operand(wanted, gradients),
    )


def _by_operand(wanted: int, gradients: list[Tensor]) -> Gradients:
    remaining = iter(gradients)
    input, target, extra = (
        next(remaining) if wanted & bit else None for bit in (INPUT_GRADIENT, TARGET_GRADIENT, EXTRA_GRADIENT)
    )
    return input, target, extra

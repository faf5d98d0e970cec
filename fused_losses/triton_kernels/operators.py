"""The four operators of a loss, for any engine: which tensors are made, and what is asked of the engine.

Results are made by the fakes' own functions, which know shapes, dtypes and strides: so what compilers are
told is what there is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from fused_losses.fakes import fakes_of
from fused_losses.registry import (
    ARGMAX,
    EXTRA_GRADIENT,
    INPUT_GRADIENT,
    STATISTICS,
    TARGET_GRADIENT,
    Loss,
)

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
"""With respect to input, target and extra."""


@dataclass(frozen=True)
class Call:
    """What an engine is asked to do: read operands, and write what is not None."""

    loss: Loss
    input: Tensor
    target: Tensor
    weight: Tensor | None
    extra: Tensor | None
    """The third operand; going backward, of a loss that has statistics: these."""
    options: tuple[Any, ...]
    reduction: int
    """As in `csrc/views.h`: none, mean, sum, batchmean."""
    upstream: Tensor | None = None
    """The gradient of the loss, going backward."""
    ready: bool = False
    """Gradients are there for an upstream gradient of 1: if it is 1, nothing is to be done."""
    value: Tensor | None = None
    """The loss: of each element or row, or the reduced one."""
    statistics: Tensor | None = None
    argmax: Tensor | None = None
    """Where the class of each row's largest logit goes."""
    gradients: Gradients = (None, None, None)

    @property
    def losses(self) -> Tensor | None:
        """Where losses go that are not reduced."""
        return None if self.reduction else self.value

    @property
    def reduced(self) -> Tensor | None:
        """Where their sum goes, divided."""
        return self.value if self.reduction else None

    @property
    def wants_gradients(self) -> bool:
        """Of any operand."""
        return any(gradient is not None for gradient in self.gradients)


Engine = Callable[[Call], None]


def on_their_device(operator: Callable[..., Any]) -> Callable[..., Any]:
    """The operator, for tensors of one device, which is the current one while it runs.

    Raises:
        RuntimeError: by what is returned, for tensors of several devices: the dispatcher looks at one alone.
    """

    @functools.wraps(operator)
    def run(*arguments: Any) -> Any:
        flat = chain.from_iterable(x if isinstance(x, list) else (x,) for x in arguments)
        tensors = [x for x in flat if isinstance(x, Tensor)]
        if any(x.device != tensors[0].device for x in tensors):
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, "
                f"{' and '.join(sorted({str(x.device) for x in tensors}))}!"
            )
        with torch.cuda.device_of(tensors[0]):
            return operator(*arguments)

    return run


def operators_of(loss: Loss, engine: Engine) -> tuple[Callable[..., Any], ...]:
    """In the order of `fused_losses.ops.Operators`."""
    results_of, other_results_of, gradients_of, _ = fakes_of(loss)

    def forward(*arguments: Any) -> list[Tensor]:
        results: list[Tensor] = results_of(*arguments)
        engine(_going_forward(loss, arguments, results, arguments[-1]))
        return results

    def forward_inplace(*arguments: Any) -> list[Tensor]:
        results: list[Tensor] = other_results_of(*arguments)
        call = _going_forward(loss, arguments, results, arguments[-1] & ~INPUT_GRADIENT)
        engine(replace(call, gradients=(call.input, *call.gradients[1:])))
        return results

    def backward(upstream: Tensor, *arguments: Any) -> list[Tensor]:
        gradients: list[Tensor] = gradients_of(upstream, *arguments)
        engine(_going_backward(loss, arguments, gradients, upstream))
        return gradients

    def backward_into(into: list[Tensor], ready: bool, upstream: Tensor, *arguments: Any) -> None:
        engine(replace(_going_backward(loss, arguments, into, upstream), ready=ready))

    return forward, forward_inplace, backward, backward_into


def _going_forward(loss: Loss, arguments: tuple[Any, ...], results: list[Tensor], wanted: int) -> Call:
    operands, (*options, reduction, _, _) = arguments[:4], arguments[4:]
    value, *kept = results
    statistics = kept.pop(0) if loss.has_statistics and wanted & STATISTICS else None
    argmax = kept.pop(0) if loss.has_statistics and wanted & ARGMAX else None
    return Call(
        loss,
        *operands,
        tuple(options),
        reduction,
        value=value,
        statistics=statistics,
        argmax=argmax,
        gradients=_by_operand(wanted, kept),
    )


def _going_backward(
    loss: Loss, arguments: tuple[Any, ...], gradients: list[Tensor], upstream: Tensor
) -> Call:
    operands, (*options, reduction, wanted) = arguments[:4], arguments[4:]
    return Call(
        loss,
        *operands,
        tuple(options),
        reduction,
        upstream=upstream,
        gradients=_by_operand(wanted, gradients),
    )


def _by_operand(wanted: int, gradients: list[Tensor]) -> Gradients:
    remaining = iter(gradients)
    of_input, of_target, of_extra = (
        next(remaining) if wanted & bit else None for bit in (INPUT_GRADIENT, TARGET_GRADIENT, EXTRA_GRADIENT)
    )
    return of_input, of_target, of_extra


def check_shape(shape: torch.Size | tuple[int, ...], *tensors: Tensor | None) -> None:
    """Anyone may call an operator, with tensors that are not what the engine takes for granted."""
    for tensor in tensors:
        if tensor is not None and tensor.shape != shape:
            raise RuntimeError(
                f"fused_losses: expected shape {tuple(shape)}, but a tensor has {tuple(tensor.shape)}"
            )

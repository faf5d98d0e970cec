"""Who takes a call: the kernels, and by which strategy, or torch's own function."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import Parameter

from fused_losses import backends
from fused_losses.autograd import (
    LossFunction,
    LossWithRows,
    Strategy,
    loss_without_gradient,
    rows_without_gradient,
)
from fused_losses.registry import EXTRA_GRADIENT, LOSSES, TARGET_GRADIENT
from fused_losses.shapes import spans

Backward = Literal["fused", "recompute", "inplace", "plan"]
"""How a user wants the gradient; see `fused_losses.functional`. Besides, "plan" raises Planned."""

REDUCTION_CODES = {"none": 0, "mean": 1, "sum": 2}

BATCH_MEAN = 3
"""The code of `kl_div`'s own reduction: the sum over the size of the first dimension."""

MOST_DIMS = 8
"""Of tensors that kernels take: `kLoopDims` in csrc/views.h."""

strict = os.environ.get("FUSED_LOSSES_STRICT") == "1"
"""Raise, rather than quietly run torch's function, where the kernels cannot take a call that torch can."""


class Planned(Exception):
    """A call that kernels take, when they were not to run: `call` is what they would have been given."""

    def __init__(self, *call: Any) -> None:
        super().__init__(call[0])
        self.call = call


def outline(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of one number that looks as one of that shape, for calls that are only planned."""
    tensor = torch.empty((), dtype=dtype, device=device).expand(shape)
    tensor.fused_losses_outline = True  # type: ignore[attr-defined]
    return tensor


decisions: list[str] | None = None
"""Where `explain` wants to hear what runs."""


def kernels_take(*tensors: Tensor | None) -> bool:
    """Whether kernels can read these tensors, the first of which is the input, here and now.

    Not for subclasses, which may mean anything by their data; not on several devices; not under torch.func
    or forward-mode AD, which must see through the operators.
    """
    if is_transformed():
        return False
    input = tensors[0]
    assert input is not None
    device = input.device
    for tensor in tensors:
        if tensor is not None and (
            (type(tensor) is not Tensor and type(tensor) is not Parameter)
            or (tensor is not input and tensor.device != device)
            or tensor.dim() > MOST_DIMS
        ):
            return False
    return device.type in backends.devices and input.layout is torch.strided


def is_transformed() -> bool:
    """Whether torch.func or forward-mode AD is at work."""
    if torch._C._are_functorch_transforms_active():
        return True
    return not torch.compiler.is_compiling() and torch.autograd.forward_ad._current_level >= 0


def by_torch(function: Callable[..., Tensor], *arguments: Any, **keywords: Any) -> Tensor:
    """Torch's own function, which also raises torch's own errors for calls that no one can take.

    Returns None, and calls nothing, for a call that was only planned.
    """
    if getattr(arguments[0], "fused_losses_outline", False):
        return None  # type: ignore[return-value]
    result = function(*arguments, **keywords)
    if decisions is not None:
        decisions.append(f"{function.__name__}: torch's own function, because {_why_torch(arguments)}")
    if strict and not is_transformed():
        raise RuntimeError(f"FUSED_LOSSES_STRICT: {function.__name__} would run through torch")
    return result


def _why_torch(arguments: tuple[Any, ...]) -> str:
    """Of the arguments that torch's function was given."""
    tensors = [x for x in arguments if isinstance(x, Tensor)]
    if is_transformed():
        return "torch.func and forward-mode AD must see through the operators"
    if any(type(tensor) is not Tensor and type(tensor) is not Parameter for tensor in tensors):
        return "a subclass of Tensor may mean anything by its data"
    device = tensors[0].device
    if any(tensor.device != device for tensor in tensors):
        return "the tensors are on several devices"
    if device.type not in backends.devices:
        return f"no kernels serve {device.type}"
    if tensors[0].layout is not torch.strided:
        return "the input is not strided"
    if any(tensor.dim() > MOST_DIMS for tensor in tensors):
        return f"kernels take tensors of up to {MOST_DIMS} dimensions"
    return "kernels do not take these dtypes, shapes or options"


def autocasts(input: Tensor) -> bool:
    """Whether torch would cast the operands of a loss to float32 and return that."""
    return torch._C._is_any_autocast_enabled() and torch.is_autocast_enabled(input.device.type)


def run(
    name: str,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    extra: Tensor | None,
    options: tuple[Any, ...],
    reduction: int,
    dtype: torch.dtype | None,
    backward: Backward,
) -> Tensor:
    """The kernels, with gradients if anyone will ask for them."""
    if backward == "plan":
        raise Planned(name, target, weight, extra, options, reduction)
    operands = (input, target, weight, extra)
    call = (name, options, reduction, dtype)
    strategy = _decided(name, input, target, extra, reduction, backward)
    if strategy is None:
        return loss_without_gradient(*operands, call)
    loss: Tensor = LossFunction.apply(*operands, call, strategy)
    return loss


def run_with_rows(
    name: str,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    options: tuple[Any, ...],
    reduction: int,
    dtype: torch.dtype | None,
    backward: Backward,
    argmax: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """As `run`, of a softmax: loss, each row's log-sum-exp, and its largest logit's class or None."""
    operands = (input, target, weight, None)
    call = (name, options, reduction, dtype)
    strategy = _decided(name, input, target, None, reduction, backward)
    if strategy is None:
        return rows_without_gradient(*operands, call, argmax)
    results: tuple[Tensor, Tensor, Tensor | None] = LossWithRows.apply(*operands, call, strategy, argmax)
    return results


def _decided(
    name: str, input: Tensor, target: Tensor, extra: Tensor | None, reduction: int, backward: Backward
) -> Strategy | None:
    """Which strategy runs; None where no gradient is asked for."""
    if not (torch.is_grad_enabled() and _is_differentiated(name, input, target, extra)):
        if decisions is not None:
            decisions.append(
                f"{name}: {backends.devices[input.device.type]}, without gradients: none is asked for"
            )
        return None
    strategy = _strategy(backward, reduction, name, input, target, extra)
    if decisions is not None:
        asked = "as asked for" if strategy == backward else f"since backward={backward!r} cannot be had here"
        decisions.append(f"{name}: {backends.devices[input.device.type]}, {strategy}, {asked}")
    return strategy


def _is_differentiated(name: str, input: Tensor, target: Tensor, extra: Tensor | None) -> bool:
    if input.requires_grad:
        return True
    bits = LOSSES[name].differentiable
    if target.requires_grad and bits & TARGET_GRADIENT:
        return True
    return extra is not None and extra.requires_grad and bool(bits & EXTRA_GRADIENT)


def _strategy(
    backward: Backward, reduction: int, name: str, input: Tensor, *others: Tensor | None
) -> Strategy:
    if backward == "recompute" or torch.compiler.is_compiling():
        # A compiled graph decides itself what it keeps, and has no use for memory that changes under it.
        return "recompute"
    # Without the upstream gradient, nothing of use can be written; in float16, 1/N and what a loss scaler
    # will multiply by must meet before they are rounded.
    early = reduction != 0 and input.dtype is not torch.float16
    if backward == "fused":
        return "fused" if early and not saved_tensors_are_hooked() else "recompute"
    if input.requires_grad:
        _check_overwritable(name, input, *others)
    return "inplace" if early else "late"


def saved_tensors_are_hooked() -> bool:
    """Whether someone wants to see (or move, or drop) what autograd keeps: a buffer would escape them."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def _check_overwritable(name: str, input: Tensor, *others: Tensor | None) -> None:
    broadcasts = LOSSES[name].family in ("pointwise", "rows")
    if broadcasts and not all(other is None or spans(input.shape, other.shape) for other in others):
        raise RuntimeError("backward='inplace' needs an input of the full, broadcast shape.")
    leaf = input._base if input._is_view() else input
    if leaf is not None and leaf.is_leaf and leaf.requires_grad:
        raise RuntimeError(
            "backward='inplace' would overwrite a leaf tensor that requires grad (or a view of one): a leaf "
            "Variable that requires grad is being used in an in-place operation."
        )
    if not (input.is_contiguous() or torch.ops.aten.is_non_overlapping_and_dense(input)):
        raise RuntimeError("backward='inplace' needs an input that is dense in memory.")

"""The runner: which strategy a call runs by, or torch's own function where there is no call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.overrides import handle_torch_function, has_torch_function

from fused_losses import devices, modes
from fused_losses.autograd import (
    LossFunction,
    LossWithRows,
    composed,
    loss_without_gradient,
    rows_without_gradient,
)
from fused_losses.call import Backward, Call, Options, Reduction, Strategy
from fused_losses.registry import EXTRA_GRADIENT, LOSSES, TARGET_GRADIENT
from fused_losses.shapes import spans

_STRIDED = torch.strided

MOST_DIMS = 8
"""Dimensions of the tensors that kernels take: `kLoopDims` in csrc/views.h."""


def kernels_take(*tensors: Tensor | None) -> bool:
    """Whether kernels can read these tensors, of which the first two must be there, here and now.

    They do not read what is no tensor, or of a subclass, whose data may mean anything, nor sparse or nested
    tensors or those of several devices; and they do not run under torch.func or forward-mode AD, which must
    see through the operators, nor where torch's own functions are to be seen.
    """
    if modes.is_transformed() or modes.is_traced():
        return False
    input = tensors[0]
    if input is None or tensors[1] is None:
        return False
    if type(input) is not Tensor and type(input) is not Parameter:  # it may have no device to ask for
        return False
    # Asking a tensor whether it is on the CPU takes a third of the time of comparing devices.
    on_cpu = input.is_cpu
    for tensor in tensors:
        if tensor is not None and (
            (type(tensor) is not Tensor and type(tensor) is not Parameter)
            or tensor.layout is not _STRIDED
            or tensor.is_nested  # such a tensor calls itself strided
            or tensor.dim() > MOST_DIMS
            or (tensor is not input and not (tensor.is_cpu if on_cpu else tensor.device == input.device))
        ):
            return False
    return devices.are_served("cpu" if on_cpu else input.device.type)


def _is_plain(value: Any) -> bool:
    return type(value) is Tensor or type(value) is Parameter


def is_overridden(*operands: Any, by_subclasses: bool = True) -> bool:
    """Whether the `__torch_function__` of an operand or a mode is to be asked, rather than the loss computed.

    Without `by_subclasses`, those of subclasses of Tensor do not count. That is for a loss that torch does
    not have: they are asked for each of the operators that it is composed of.
    """
    # torch.compile asks by itself, where it meets torch's function.
    if modes.is_compiling() or not has_torch_function(operands):
        return False
    if modes.is_traced():
        return True
    # What is left of modes is a default device, which has nothing to answer.
    others = [x for x in operands if not (_is_plain(x) if by_subclasses else isinstance(x, Tensor))]
    return any(hasattr(x, "__torch_function__") for x in others)


def by_override(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """What the `__torch_function__` of an argument or a mode makes of a call of that function."""
    return handle_torch_function(function, (*arguments, *keywords.values()), *arguments, **keywords)


def by_torch(function: Callable[..., Tensor], *arguments: Any, **keywords: Any) -> Tensor:
    """Torch's own function, which also raises torch's own errors for calls that no one can take.

    A `__torch_function__` of an operand or a mode is handed that function.
    """
    if is_overridden(*arguments, *keywords.values()):
        # Torch's function would hand on what has its name, which under a patch is another.
        result: Tensor = by_override(function, *arguments, **keywords)
    else:
        result = function(*arguments, **keywords)
    _tell(function.__name__, "torch's own function", arguments)
    return result


def by_composed(
    name: str,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    extra: Tensor | None,
    options: Options,
    reduction: str,
) -> Tensor:
    """The loss of that name composed of torch's operators: for what torch's functions do not have."""
    result = LOSSES[name].reference(input, target, weight, extra, options, reduction)
    what = "torch's own function" if LOSSES[name].has_twin else "torch's own operators"
    _tell(name, what, (input, target, weight, extra))
    return result


def _tell(name: str, what: str, arguments: tuple[Any, ...]) -> None:
    """Tells `explain` that no kernels ran; raises RuntimeError where kernels alone may run."""
    if (heard := modes.hear()) is not None:
        heard.append(f"{name}: {what}, because {_why_torch(arguments)}")
    if modes.is_compiling() or modes.is_transformed() or modes.is_traced():
        return
    if modes.strict.get():
        raise RuntimeError(f"FUSED_LOSSES_STRICT: {name} would run through torch")


def _why_torch(arguments: tuple[Any, ...]) -> str:
    """Why kernels did not take the tensors among these arguments, the first of which is the input."""
    tensors = [x for x in arguments if isinstance(x, Tensor)]
    if modes.is_transformed():
        return "torch.func and forward-mode AD must see through the operators"
    if modes.is_traced():
        return "torch.jit.trace or a TorchFunctionMode is to see torch's functions"
    if not all(map(_is_plain, tensors)):
        return "a subclass of Tensor may mean anything by its data"
    device = tensors[0].device
    if any(tensor.device != device for tensor in tensors):
        return "the tensors are on several devices"
    if not devices.are_served(device.type):
        return f"no kernels serve {device.type}"
    if any(tensor.layout is not torch.strided or tensor.is_nested for tensor in tensors):
        return "a tensor is not strided"
    if any(tensor.dim() > MOST_DIMS for tensor in tensors):
        return f"kernels take tensors of up to {MOST_DIMS} dimensions"
    if any(tensor.is_inference() for tensor in tensors):
        return "autograd saves nothing for kernels that was made in inference mode"
    return "kernels do not take these dtypes, shapes or options"


def run_by_torch(call: Call) -> Tensor:
    """The loss of a call in torch's own operators, differentiable any number of times."""
    loss = composed(call.name, call.operands, call.options, call.reduction, call.dtype)
    return loss if call.finish is None else call.finish(loss)


def run(call: Call, backward: Backward) -> Tensor:
    """The loss by the kernels, shaped as the reduction leaves it, with a gradient if one is asked for."""
    strategy = _strategy(call, backward)
    if strategy is None:
        loss = loss_without_gradient(call)
    else:
        try:
            loss = LossFunction.apply(call.input, call.target, call.weight, call.extra, call, strategy)
        except RuntimeError as error:
            if "Inference tensors cannot be saved for backward" not in str(error):
                raise
            # Some of torch's losses do not save what was made in inference mode, and take it.
            loss = composed(call.name, call.operands, call.options, call.reduction, call.dtype)
            _tell(call.name, "torch's own operators after all", call.operands)
    return loss if call.finish is None else call.finish(loss)


def run_with_rows(call: Call, backward: Backward, argmax: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """The loss of a softmax, the log-sum-exps of rows, and if `argmax`, the classes of their largest logits.

    Log-sum-exps (N, d1, ...) are float32 (float64 for float64) and differentiable; classes are int64 and of
    the same shape.
    """
    strategy = _strategy(call, backward)
    if strategy is None:
        return rows_without_gradient(call, argmax)
    results: tuple[Tensor, Tensor, Tensor | None] = LossWithRows.apply(*call.operands, call, strategy, argmax)
    return results


def _strategy(call: Call, backward: Backward) -> Strategy | None:
    """The strategy that a call runs by; None where no gradient is asked for."""
    strategy: Strategy | None = None
    if _is_differentiated(call):
        strategy = _strategy_of_gradient(call, backward)
    if (heard := modes.hear()) is not None:
        if strategy is None:
            how = "without gradients: none is asked for"
        elif strategy == backward:
            how = f"{strategy}, as asked for"
        else:
            how = f"{strategy}, because {_why_not(backward, call)}"
        heard.append(f"{call.name}: {devices.kernels_for(call.input.device.type)}, {how}")
    return strategy


def _is_differentiated(call: Call) -> bool:
    """Whether an operand with a derivative requires grad, and gradients are enabled."""
    target, extra = call.target.requires_grad, call.extra is not None and call.extra.requires_grad
    if call.input.requires_grad:
        return torch.is_grad_enabled()
    if not (target or extra) or not torch.is_grad_enabled():
        return False
    bits = LOSSES[call.name].differentiable
    return bool((target and bits & TARGET_GRADIENT) or (extra and bits & EXTRA_GRADIENT))


def _strategy_of_gradient(call: Call, backward: Backward) -> Strategy:
    """The strategy of a call with a gradient."""
    if backward == "recompute" or modes.is_compiling():
        # A compiled graph decides itself what it keeps, and has no use for memory that changes under it.
        return "recompute"
    # Without the upstream gradient, nothing of use can be written for losses of their own; in float16, 1/N
    # and what a loss scaler will multiply by must meet before they are rounded.
    early = call.reduction != Reduction.NONE and call.input.dtype is not torch.float16
    if backward == "inplace" and call.input.requires_grad:
        _check_overwritable(call)
        return "inplace" if early else "late"
    return "fused" if early and not modes.saved_tensors_are_hooked() else "recompute"


def _why_not(backward: Backward, call: Call) -> str:
    """Why a call runs by another strategy than the one that was asked for."""
    if backward == "inplace" and not call.input.requires_grad:
        return "the input requires no grad"
    if call.reduction == Reduction.NONE:
        return "each loss has an upstream gradient of its own, which must be known first"
    if call.input.dtype is torch.float16:
        return "in float16, the upstream gradient must be known before anything is rounded"
    return "hooks are to see all tensors that are saved"


def _check_overwritable(call: Call) -> None:
    """Raises RuntimeError where the input cannot hold its own gradient."""
    input, target, _, extra = call.operands
    broadcasts = LOSSES[call.name].family in ("pointwise", "vectors")
    if broadcasts and not all(x is None or spans(input.shape, x.shape) for x in (target, extra)):
        raise RuntimeError("backward='inplace' needs an input of the full, broadcast shape.")
    base = input._base
    if input.is_leaf or (base is not None and base.is_leaf and base.requires_grad):
        raise RuntimeError(
            "backward='inplace' would overwrite a leaf tensor that requires grad (or a view of one): a leaf "
            "Variable that requires grad is being used in an in-place operation."
        )
    if not (input.is_contiguous() or torch.ops.aten.is_non_overlapping_and_dense(input)):
        raise RuntimeError("backward='inplace' needs an input that is dense in memory.")

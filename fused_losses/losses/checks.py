"""What the kernels take: the shapes and dtypes of operands, and the dtype of the loss."""

from __future__ import annotations

import os
import sys
import warnings
from numbers import Real
from typing import TypeVar, cast

import torch
from torch import Tensor
from torch.nn import _reduction as legacy

from fused_losses import modes
from fused_losses.modes import autocasts
from fused_losses.shapes import positions, spans

FLOATING = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})
INTEGRAL = frozenset({torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64})

Name = TypeVar("Name", bound=str)


def check_backward(backward: str) -> None:
    """Raises ValueError for a `backward` that is no strategy."""
    if backward not in ("fused", "recompute", "inplace"):
        raise ValueError(f"backward must be 'fused', 'recompute' or 'inplace', but it is {backward!r}")


def reduction_of(backward: str, reduction: Name, size_average: bool | None, reduce: bool | None) -> Name:
    """The reduction that is meant by torch's three arguments, two of which are deprecated.

    Raises:
        ValueError: `backward` is no strategy; every loss that has these arguments has that one, too.
    """
    check_backward(backward)
    if size_average is None and reduce is None:
        return reduction
    meant = cast(Name, legacy.legacy_get_string(size_average, reduce, emit_warning=False))
    warn(f"size_average and reduce args will be deprecated, please use reduction='{meant}' instead.")
    return meant


_INT64 = -(2**63), 2**63 - 1
"""The smallest and the largest integer that torch's operators take, which are of 64 bits."""


def are_numbers(*options: object) -> bool:
    """Whether torch's own functions take these for numbers: not strings or arrays, which float() reads."""
    for option in options:
        if not isinstance(option, float) and not (isinstance(option, int) and _is_int64(option)):
            return False
    return True


def are_flags(*options: object) -> bool:
    """Whether torch's own functions take these for flags: bool alone, not whatever is true or false."""
    for option in options:  # noqa: SIM110
        if not isinstance(option, bool):
            return False
    return True


def check_numbers(**options: object) -> None:
    """Raises TypeError for an option that is no real number, by its name."""
    for name, value in options.items():
        if not isinstance(value, (Real, torch.SymFloat, torch.SymInt)):
            raise TypeError(f"{name} must be a number, not {type(value).__name__}")


def as_element(number: float, dtype: torch.dtype) -> float:
    """A number as comparisons with elements of a dtype take it: rounded to it."""
    # Every floating dtype has all whole numbers up to 256, and most users ignore one of these.
    rounds = dtype in (torch.bfloat16, torch.float16, torch.float32)
    if not rounds or (-256 <= number <= 256 and number == int(number)):
        return number
    return torch.tensor(number, dtype=dtype).item()


def is_index(option: object) -> bool:
    """Whether torch's own functions take this for the number of a class."""
    return isinstance(option, int) and not isinstance(option, bool) and _is_int64(option)


def _is_int64(option: int) -> bool:
    return _INT64[0] <= option <= _INT64[1]


def takes_softmax(input: Tensor, target: Tensor, weight: Tensor | None) -> bool:
    """Whether the softmax family is defined on such operands.

    That is: input (N, C, d1, ...) or (C); target labels (N, d1, ...), int64 or uint8, or probabilities shaped
    as input; weight (C).
    """
    dims = input.dim()
    if dims == 0 or input.dtype not in FLOATING:
        return False
    classes = input.shape[0 if dims == 1 else 1]
    if classes == 0:
        return False
    if target.is_floating_point():
        # Torch has kernels for float64 beside narrower dtypes, to which it promotes; this package has none.
        same_width = (input.dtype is torch.float64) == (target.dtype is torch.float64)
        fits = target.shape == input.shape and target.dtype in FLOATING and same_width
    elif target.dtype is torch.int64 or target.dtype is torch.uint8:
        if dims == 2:  # the common case, at half the price
            fits = target.dim() == 1 and target.shape[0] == input.shape[0]
        else:
            fits = target.shape == positions(input)
    else:
        fits = False
    return fits and (weight is None or _takes_class_weight(input, weight, classes))


def takes_class_margin(input: Tensor, target: Tensor, weight: Tensor | None) -> bool:
    """Whether class margins are defined on input (N, C) or (C), int64 labels and weight (C).

    Whether the shape of target fits is left to the loss.
    """
    return (
        input.dim() <= 2
        and input.dtype in FLOATING
        and (classes := input.shape[-1] if input.dim() else 1) > 0
        and target.dtype is torch.int64
        and (weight is None or _takes_class_weight(input, weight, classes))
    )


def _takes_class_weight(input: Tensor, weight: Tensor, classes: int) -> bool:
    return (
        weight.dim() == 1
        and weight.shape[0] == classes
        and not weight.requires_grad
        and (weight.dtype is input.dtype or meets_in_dtype(input, weight))
    )


def meets_in_dtype(input: Tensor, other: Tensor) -> bool:
    """Whether torch's function, which promotes neither, gets both in one dtype: autocast widens 16 bits."""
    if input.dtype is other.dtype:
        return True
    if not autocasts(input) or other.dtype not in FLOATING:
        return False
    return (input.dtype is torch.float64) == (other.dtype is torch.float64)


def takes_elements(input: Tensor, target: Tensor, weight: Tensor | None = None) -> bool:
    """Whether the elementwise losses are defined on these dtypes and this weight."""
    return (
        input.dtype in FLOATING
        and target.dtype in FLOATING
        and (weight is None or takes_factor(input, weight))
    )


def takes_factor(input: Tensor, factor: Tensor) -> bool:
    """Whether a weight multiplies the elements of input without making more of them."""
    if factor.dtype not in FLOATING or factor.requires_grad:
        return False
    return spans(input.shape, factor.shape)


def as_floating(tensor: Tensor, like: Tensor) -> Tensor:
    """Integers in the dtype that torch promotes them to beside `like`."""
    return tensor.to(like.dtype) if tensor.dtype in INTEGRAL else tensor


def promoted(input: Tensor, *others: Tensor | None) -> torch.dtype | None:
    """The loss's dtype where it is not the input's: promoted, or float32 under autocast."""
    dtype = input.dtype
    for tensor in others:
        if tensor is not None and tensor.dtype is not dtype:
            dtype = _promotion(input, others)
            break
    if autocasts(input) and dtype is not torch.float64:
        dtype = torch.float32
    return None if dtype is input.dtype else dtype


def promoted_without_autocast(input: Tensor, *others: Tensor | None) -> torch.dtype | None:
    """The dtype that `promoted` returns without autocast."""
    dtype = _promotion(input, others)
    return None if dtype is input.dtype else dtype


def promoted_by_operators(input: Tensor, *others: Tensor | None) -> torch.dtype | None:
    """The dtype that `promoted` returns, for a loss that torch.nn composes of operators.

    They are powers, logarithms, norms and sums: autocast computes these in float32 on a GPU, and leaves them
    alone on a CPU.
    """
    return promoted_without_autocast(input, *others) if input.is_cpu else promoted(input, *others)


def _promotion(input: Tensor, others: tuple[Tensor | None, ...]) -> torch.dtype:
    dtype = input.dtype
    for tensor in others:
        if tensor is None or tensor.dtype is dtype:
            continue
        # A scalar tensor gives way to one with dimensions.
        if tensor.dim() and not input.dim():
            dtype = tensor.dtype
        elif bool(tensor.dim()) == bool(input.dim()):
            dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def warn_of_broadcast(input: Tensor, target: Tensor) -> None:
    """Torch's warning."""
    warn(
        f"Using a target size ({target.size()}) that is different to the input size ({input.size()}). "
        "This will likely lead to incorrect results due to broadcasting. "
        "Please ensure they have the same size."
    )


_INTERNAL = os.path.join(os.path.dirname(modes.__file__), ""), torch.nn.modules.module.__file__
"""The folder and the file whose functions are between a warning and the line of the user: this package's, and
the one by which torch.nn calls a module."""


def warn(message: str) -> None:
    """A warning at the line that called the loss, or the module, as torch's are at that of the function.

    There is none from within a graph that is being compiled: it would break it.
    """
    if modes.is_compiling():
        return
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INTERNAL):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)

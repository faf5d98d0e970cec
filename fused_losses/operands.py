"""What the kernels take: the shapes and dtypes of operands, and the dtype of the loss."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from fused_losses.dispatch import autocasts
from fused_losses.shapes import spans

FLOATING = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})
INTEGRAL = frozenset({torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64})


def check_backward(backward: str) -> None:
    """Raises ValueError for a strategy that is none."""
    if backward not in ("fused", "recompute", "inplace", "plan"):
        raise ValueError(f"backward must be 'fused', 'recompute' or 'inplace', but it is {backward!r}")


def are_numbers(*options: object) -> bool:
    """Whether torch's own functions take these for numbers: not strings, which float() would read."""
    return all(isinstance(option, (int, float)) for option in options)


def are_flags(*options: object) -> bool:
    """Whether torch's own functions take these for flags: bool alone, not whatever is true or false."""
    return all(isinstance(option, bool) for option in options)


def is_index(option: object) -> bool:
    """Whether torch's own functions take this for the number of a class."""
    return isinstance(option, int) and not isinstance(option, bool)


def takes_classes(input: Tensor, target: Tensor, weight: Tensor | None) -> bool:
    """Whether shapes and dtypes are such as the softmax family is defined on."""
    dims = input.dim()
    if dims == 0 or input.dtype not in FLOATING:
        return False
    classes = input.shape[0 if dims == 1 else 1]
    if classes == 0:
        return False
    if target.is_floating_point():
        # Of another dtype, torch promotes; it has kernels for that, we do not.
        fits = target.shape == input.shape and target.dtype in FLOATING
        wide = (input.dtype is torch.float64) != (target.dtype is torch.float64)
        fits = fits and not wide
    elif target.dtype is torch.int64 or target.dtype is torch.uint8:
        if dims == 2:  # the common case, at half the price
            fits = target.dim() == 1 and target.shape[0] == input.shape[0]
        else:
            fits = target.shape == (input.shape[:1] + input.shape[2:] if dims > 1 else input.shape[1:])
    else:
        fits = False
    return fits and (weight is None or _takes_class_weight(input, weight, classes))


def takes_labels(input: Tensor, target: Tensor, weight: Tensor | None) -> bool:
    """Whether the class margins are defined on these scores, weights and dtypes; not whether target fits."""
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
        and (weight.dtype is input.dtype or (autocasts(input) and weight.dtype in FLOATING))
    )


def takes_elements(input: Tensor, target: Tensor, weight: Tensor | None) -> bool:
    """Whether the pointwise family is defined on these dtypes and this weight."""
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
    """Integers as the dtype that torch promotes them to beside `like`."""
    return tensor.to(like.dtype) if tensor.dtype in INTEGRAL else tensor


def promoted(*tensors: Tensor | None) -> torch.dtype | None:
    """The loss's dtype where it is not the input's: promoted, or float32 under autocast."""
    dtype = _promotion(*tensors)
    input = tensors[0]
    assert input is not None
    if autocasts(input) and dtype is not torch.float64:
        dtype = torch.float32
    return None if dtype is input.dtype else dtype


def promoted_without_autocast(*tensors: Tensor | None) -> torch.dtype | None:
    """As `promoted`, for losses composed of operators that autocast leaves alone on the CPU."""
    dtype = _promotion(*tensors)
    assert tensors[0] is not None
    return None if dtype is tensors[0].dtype else dtype


def _promotion(*tensors: Tensor | None) -> torch.dtype:
    input = tensors[0]
    assert input is not None
    dtype = input.dtype
    for tensor in tensors[1:]:
        if tensor is None or tensor.dtype is dtype:
            continue
        # A scalar tensor gives way to one with dimensions.
        if tensor.dim() and not input.dim():
            dtype = tensor.dtype
        elif bool(tensor.dim()) == bool(input.dim()):
            dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def warn_of_broadcast(input: Tensor, target: Tensor) -> None:
    """Torch's warning, at the caller of the loss."""
    warn(
        f"Using a target size ({target.size()}) that is different to the input size ({input.size()}). "
        "This will likely lead to incorrect results due to broadcasting. "
        "Please ensure they have the same size.",
        stacklevel=5,
    )


def warn(message: str, stacklevel: int) -> None:
    """A warning at the caller, but not from within a graph that is being compiled: it would break it."""
    if not torch.compiler.is_compiling():
        warnings.warn(message, stacklevel=stacklevel)

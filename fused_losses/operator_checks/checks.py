"""Single checks of an operator's arguments, and the errors that they raise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from fused_losses.shapes import broadcast

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
FLOATING_NAMES = "float32, float64, bfloat16 or float16"

MOST_ELEMENTS = 2**60
"""Elements that a tensor, or several that broadcast, may have: of 8 bytes each, they have 2^63 bytes."""

MOST_DIMS = 64
"""Dimensions that a tensor may have, as for torch's own iterators."""


@dataclass(frozen=True)
class Checks:
    """Checks of an operator's arguments, which raise RuntimeError for one that the kernels do not take."""

    loss: str
    """The name that errors begin with."""

    def refuse(self, argument: str, expected: str, found: object) -> NoReturn:
        """Raises the error: the argument must be as expected, but it is as found."""
        if isinstance(found, Tensor):
            found = describe(found)
        raise RuntimeError(f"{self.loss}: {argument} must {expected}, but it is {found}")

    def devices(self, tensors: dict[str, Tensor | None]) -> None:
        """Checks that tensors are on the first one's device, since the dispatcher looks at one alone."""
        (first, one), *others = tensors.items()
        if one is None:
            self.refuse(first, "be a tensor", None)
        for name, tensor in others:
            if tensor is not None and tensor.device != one.device:
                self.refuse(name, f"be on the same device as {first}, {one.device}", f"on {tensor.device}")
        for name, tensor in tensors.items():
            if tensor is not None and tensor.dim() > MOST_DIMS:
                self.refuse(name, f"have at most {MOST_DIMS} dimensions", tensor)

    def floating(self, **tensors: Tensor | None) -> None:
        """Checks that tensors have one of the four dtypes; those that are None are passed over."""
        for name, tensor in tensors.items():
            if tensor is not None and tensor.dtype not in FLOATING:
                self.refuse(name, f"be {FLOATING_NAMES}", tensor)

    def shape(self, shape: Sequence[int], **tensors: Tensor | None) -> None:
        """Checks that tensors have a shape; those that are None are passed over."""
        for name, tensor in tensors.items():
            if tensor is not None and tuple(tensor.shape) != tuple(shape):
                self.refuse(name, f"have shape {tuple(shape)}", tensor)

    def absent(self, **tensors: Tensor | None) -> None:
        """Checks that there are no such tensors."""
        for name, tensor in tensors.items():
            if tensor is not None:
                self.refuse(name, "be None", tensor)

    def present(self, **tensors: Tensor | None) -> None:
        """Checks that there are such tensors."""
        for name, tensor in tensors.items():
            if tensor is None:
                self.refuse(name, "be a tensor", None)

    def parameters(self, parameters: Sequence[float], count: int) -> None:
        """Checks that there are as many parameters as the loss takes."""
        if len(parameters) != count:
            self.refuse("parameters", f"hold as many numbers as the loss takes, {count}", len(parameters))

    def broadcast(self, **operands: Tensor | None) -> torch.Size:
        """The shape that operands broadcast to; an error names the first that does not fit the others."""
        given = {name: x for name, x in operands.items() if x is not None}
        try:
            shape = broadcast(*given.values())
        except RuntimeError:
            name, tensor = list(given.items())[-1]
            others = dict(list(given.items())[:-1])
            before = self.broadcast(**others)
            self.refuse(name, f"broadcast with shape {tuple(before)} of those before it", tensor)
        # Sizes of fake tensors may be symbols, and torch's own product overflows silently.
        if all(type(size) is int for size in shape) and math.prod(shape) > MOST_ELEMENTS:
            self.refuse("input", "have, broadcast with the others, at most 2^60 elements", f"{tuple(shape)}")
        return shape

    def spans(self, shape: torch.Size, **factors: Tensor | None) -> None:
        """Checks that factors broadcast to a shape; those that are None are passed over."""
        for name, factor in factors.items():
            if factor is None or factor.shape == shape:
                continue
            try:
                fits = torch.broadcast_shapes(shape, factor.shape) == shape
            except RuntimeError:
                fits = False
            if not fits:
                self.refuse(name, f"broadcast to shape {tuple(shape)}", factor)


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype, for messages: "float32"."""
    return str(dtype).removeprefix("torch.")


def describe(tensor: Tensor) -> str:
    """A tensor's dtype and shape, for messages: "float32 of shape (6, 10)"."""
    return f"{dtype_name(tensor.dtype)} of shape {tuple(tensor.shape)}"

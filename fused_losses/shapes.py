"""Which shapes broadcast to which: torch's own answers take longer than a small loss."""

from __future__ import annotations

import torch
from torch import Tensor


def spans(shape: torch.Size, other: torch.Size) -> bool:
    """Whether `other` broadcasts to `shape`."""
    if shape == other:
        return True
    if len(other) > len(shape):
        return False
    return all(mine in (1, theirs) for mine, theirs in zip(reversed(other), reversed(shape), strict=False))


def broadcast(*operands: Tensor | None) -> torch.Size:
    """The shape that operands broadcast to.

    Raises:
        RuntimeError: they do not.
    """
    shapes = [x.shape for x in operands if x is not None]
    # Sizes of fake tensors may be symbols: asking whether they are equal would make them so.
    if type(operands[0]) is Tensor and all(shape == shapes[0] for shape in shapes):
        return shapes[0]
    shape: torch.Size = torch.broadcast_shapes(*shapes)
    return shape


def broadcast_shape(input: Tensor, *others: Tensor) -> torch.Size | None:
    """The shape that the tensors broadcast to, if they do."""
    mine = input.shape
    if all(spans(mine, other.shape) for other in others):
        return mine
    try:
        shape: torch.Size = torch.broadcast_shapes(mine, *(other.shape for other in others))
    except RuntimeError:
        return None
    return shape

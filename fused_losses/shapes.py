"""Which shapes broadcast to which, and which dimensions are rows.

Torch's own answers take longer than a small loss.
"""

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
    shape: torch.Size = input.shape
    for other in others:  # a loop, which is faster than `all` over so few
        if not spans(shape, other.shape):
            break
    else:
        return shape
    try:
        shape = torch.broadcast_shapes(shape, *(other.shape for other in others))
    except RuntimeError:
        return None
    return shape


def class_dim(input: Tensor) -> int:
    """The dimension of classes of an input (N, C, d1, ...) or (C): 1 or 0."""
    return min(1, input.dim() - 1)


def positions(input: Tensor) -> torch.Size:
    """(N, d1, ...) of an input (N, C, d1, ...), () of an input (C)."""
    return input.shape[:1] + input.shape[2:] if input.dim() > 1 else input.shape[:0]


def losses_shape(family: str, input: Tensor, *others: Tensor | None) -> torch.Size:
    """The shape of the losses of reduction="none", given a loss's family and operands."""
    if family == "pointwise":
        return broadcast(input, *others)
    if family == "vectors":
        return broadcast(input, *others)[:-1]
    return positions(input) if family == "softmax" else input.shape[:-1]

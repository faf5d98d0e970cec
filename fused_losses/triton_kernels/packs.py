"""How many neighbours kernels read at once, from where tensors begin and their strides.

Compilers know of a stride whether 16 divides it, and nothing else; a pack of 128 bits needs less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from fused_losses.triton_kernels.iteration import Strides, TensorArgument

PACK_BYTES = 16
"""The widest access to memory that all GPUs have."""

SHIFTED_CLASSES = 512
"""The fewest classes of rows that are read from the pack in which they begin: what is written of each row by
itself, at its two ends, is another dozen of instructions for each of a few threads."""


def _full(x: Tensor) -> int:
    return PACK_BYTES // x.element_size()


def _places(sizes: Strides, x: Tensor, strides: Strides) -> Strides:
    """Where in a pack a tensor's rows begin: the first one, and how far the next is in each dimension."""
    steps = () if sizes == (1,) else strides
    return tuple(step % _full(x) for step in (x.data_ptr() // x.element_size(), *steps))


def pack_of_rows(classes: int, sizes: Strides, tensors: Sequence[TensorArgument]) -> int:
    """How many of a row's classes are read at once: a power of two that divides where rows begin and end.

    Args:
        classes: How many a row has.
        sizes: The dimensions that rows are walked over.
        tensors: What has a number for each class of each row, as in `iteration.position_arguments`.
    """
    rows = [x for x in tensors if x[0] is not None]
    if any(stride != 1 for _, stride, _ in rows):
        return 1
    places = [place for x, _, strides in rows for place in _places(sizes, x, strides)]
    return math.gcd(classes, *(_full(x) for x, _, _ in rows), *places)


def shifted_pack(classes: int, sizes: Strides, tensors: Sequence[TensorArgument]) -> int | None:
    """What a pack of 128 bits has, where rows are better read from the pack in which they begin; or None.

    They begin at the same place of a pack in all tensors then.
    """
    rows = [x for x in tensors if x[0] is not None]
    full = {_full(x) for x, _, _ in rows}
    is_same = len({_places(sizes, x, strides) for x, _, strides in rows}) == len(full) == 1
    worth = classes >= SHIFTED_CLASSES and 4 * pack_of_rows(classes, sizes, tensors) <= max(full)
    return max(full) if worth and is_same and all(stride == 1 for _, stride, _ in rows) else None


def has_even_positions(sizes: Strides, tensors: Sequence[TensorArgument]) -> bool:
    """Whether positions lie side by side in all tensors, and compilers see that pairs of them are aligned."""
    known = 16
    for x, *steps in tensors:
        if x is not None:
            *outer, innermost = steps[-1]
            if innermost != 1 or any(step % known for step in (steps[0], *outer)):
                return False
    return len(sizes) == 1 or sizes[-1] % known == 0

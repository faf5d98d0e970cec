"""In which order positions are visited, and where tensors have them in memory; `elements.py` is for elements.

What kernels take of a tensor is a tuple: its pointer, its stride along an axis that is walked within a
position (classes, or the elements of a vector) if it has one, and its strides along the dimensions of the
walk. A tensor that is absent is (None, None). `memory.py` reads and writes through these tuples.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

Strides = tuple[int, ...]

TensorArgument = tuple[Any, ...]
"""(pointer, strides) or (pointer, stride along the axis, strides); (None, None) for no tensor."""

ABSENT: TensorArgument = (None, None)


def merged(sizes: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[Strides, list[Strides]]:
    """Sizes and each tensor's strides, outermost first, with dimensions of size 1 left out and others merged.

    Two dimensions become one where all tensors allow it: one that is contiguous in the order of the
    dimensions has a single dimension of stride 1 then. At least one dimension is left, and the same number
    for all tensors.
    """
    out_sizes: list[int] = []
    out_strides: list[list[int]] = [[] for _ in strides]
    for d, size in enumerate(sizes):
        if size == 1:
            continue
        steps = [each[d] for each in strides]
        if out_sizes and all(out[-1] == step * size for out, step in zip(out_strides, steps, strict=True)):
            out_sizes[-1] *= size
        else:
            out_sizes.append(size)
            for out in out_strides:
                out.append(0)
        for out, step in zip(out_strides, steps, strict=True):
            out[-1] = step
    if not out_sizes:
        return (1,), [(1,)] * len(strides)
    return tuple(out_sizes), [tuple(out) for out in out_strides]


def memory_order(shape: torch.Size, leader: Tensor) -> list[int]:
    """The dimensions of a shape, outermost first, in the order in which `leader` has them in memory.

    If that is not dense or has another shape, it is the order of a contiguous tensor.
    """
    strides = leader.stride()
    if leader.shape != shape or not torch.ops.aten.is_non_overlapping_and_dense(leader):
        strides = torch.empty(shape, device="meta").stride()
    return sorted(range(len(shape)), key=lambda d: -strides[d])


def position_arguments(
    shape: torch.Size,
    axis: int,
    order: Sequence[int],
    with_axis: Sequence[Tensor | None],
    without_axis: Sequence[Tensor | None],
) -> tuple[Strides, list[TensorArgument], list[TensorArgument]]:
    """For a walk over positions, the dimensions of a shape but for one: its sizes, and what kernels take.

    Args:
        shape: What tensors with the axis have.
        axis: The dimension that is not walked over, from 0.
        order: The dimensions in the order of the walk, outermost first; `axis` may be among them.
        with_axis: Tensors of the shape; their arguments are (pointer, stride along the axis, strides).
        without_axis: Tensors of the shape without the axis; theirs are (pointer, strides).
    """
    dims = [d for d in order if d != axis]
    strides = [[x.stride(d) for d in dims] for x in with_axis if x is not None]
    strides += [[x.stride(d - (d > axis)) for d in dims] for x in without_axis if x is not None]
    sizes, found = merged([shape[d] for d in dims], strides)
    remaining = iter(found)
    return (
        sizes,
        [ABSENT if x is None else (x, x.stride(axis), next(remaining)) for x in with_axis],
        [ABSENT if x is None else (x, next(remaining)) for x in without_axis],
    )


def compute_dtype(*tensors: Tensor | None) -> tl.dtype:
    """What a kernel computes in: float64 if a tensor is of that dtype, else float32."""
    has_float64 = any(x is not None and x.dtype is torch.float64 for x in tensors)
    return tl.float64 if has_float64 else tl.float32


def index_type(count: int) -> tl.dtype:
    """The type that numbers elements or positions: divisions of 64 bits are long, and few tensors need them.

    The last step of a walk leads past its end, by less than all programs of any device take at once: half of
    what int32 has room for is far more.
    """
    return tl.int32 if count <= 2**30 else tl.int64


@triton.jit
def turns(count, TILE: tl.constexpr, INDEX: tl.constexpr):
    """A program's share of `count`: from where, to where, and in which steps it takes its tiles."""
    return tl.program_id(0).to(INDEX) * TILE, tl.full((), count, INDEX), tl.num_programs(0).to(INDEX) * TILE

"""In which order the elements of tensors are visited, and where each one lies."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

Strides = tuple[int, ...]


def merged(sizes: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[Strides, list[Strides]]:
    """Dimensions, outermost first, without those that no one steps along, merged where possible.

    A tensor that is contiguous in the order of the dimensions becomes one dimension of stride 1. There is
    always a dimension, and always the same number for all tensors.
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


def elementwise(
    shape: torch.Size, leader: Tensor, tensors: Sequence[Tensor | None]
) -> tuple[Strides, list[Strides | None]]:
    """Sizes of a walk over `shape` in the order in which `leader` lies in memory, and all strides."""
    if all(x is None or (x.shape == shape and x.is_contiguous()) for x in tensors):
        return (shape.numel(),), [None if x is None else (1,) for x in tensors]
    lies = leader.stride()
    if leader.shape != shape or not torch.ops.aten.is_non_overlapping_and_dense(leader):
        lies = torch.empty(shape, device="meta").stride()
    order = sorted(range(len(shape)), key=lambda d: -lies[d])
    strides = [[tensor.expand(shape).stride()[d] for d in order] for tensor in tensors if tensor is not None]
    sizes, found = merged([shape[d] for d in order], strides)
    remaining = iter(found)
    return sizes, [None if tensor is None else next(remaining) for tensor in tensors]


def index_type(count: int) -> tl.dtype:
    """Of the numbers of elements or rows: divisions of 64 bits are long, and few tensors need them.

    The last step leads past the end, by less than all that the programs of any device take at once.
    """
    return tl.int32 if count <= 2**30 else tl.int64


@triton.jit
def turns(count, TILE: tl.constexpr, INDEX: tl.constexpr):
    """A program's share of `count`: from where, to where, and in which steps it takes its tiles."""
    return tl.program_id(0).to(INDEX) * TILE, tl.full((), count, INDEX), tl.num_programs(0).to(INDEX) * TILE


@triton.jit
def offset_of(index, sizes, strides):
    """Where element number `index` of a walk over `sizes` lies: in elements, as int64."""
    if len(sizes) == 1:
        # A stride of 1 is compiled in: neighbours are seen to be neighbours.
        return index.to(tl.int64) * strides[0]
    else:
        rest = index
        offset = (index * 0).to(tl.int64)
        for d in tl.static_range(len(sizes) - 1, 0, -1):
            offset += (rest % sizes[d]).to(tl.int64) * strides[d]
            rest = rest // sizes[d]
        return offset + rest.to(tl.int64) * strides[0]

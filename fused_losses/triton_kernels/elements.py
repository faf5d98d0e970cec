"""The walk of pointwise losses over their elements: where tensors have them, how kernels read and write them.

Elements are numbered in the order in which the input lies in memory. A kernel takes a tile of them at a time,
in packs of PACK neighbours along the innermost dimension: the place of the first tells those of the others.
A tile has the shape (BLOCK / PACK, PACK), or (BLOCK) if a pack is one element.

What kernels take of a tensor is a tuple: its pointer, its stride along the innermost dimension, and its
strides along the others. The second is None if all elements of a pack share a number. The third is None if an
element's number times the second leads to it, or if all elements share one number. (None, None, None) is no
tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import torch
import triton
import triton.language as tl
from torch import Tensor

from fused_losses.triton_kernels.formulas.math import INTERPRETED, has_ptx
from fused_losses.triton_kernels.iteration import Strides, TensorArgument, memory_order, merged
from fused_losses.triton_kernels.memory import store
from fused_losses.triton_kernels.tiling import LEAST_WARPS, WARP

MOST_NEIGHBOURS = 8
"""Elements of a pack: 128 bits of 16-bit numbers, the most that one load takes."""

PAIRS = tl.constexpr(2 * LEAST_WARPS * WARP)
"""The least tile of which each thread has two numbers."""

ABSENT: TensorArgument = (None, None, None)


@dataclass(frozen=True)
class Walk:
    """How a kernel is to walk over the elements of a shape."""

    sizes: Strides
    """The dimensions, outermost first, with those merged that all tensors allow."""
    multipliers: tuple[int, ...]
    """For each size but the outermost, see `reciprocal`."""
    shifts: tuple[int, ...]
    pack: int
    """PACK, a power of two."""
    tensors: tuple[TensorArgument, ...]
    """What the kernel takes of each tensor."""


def reciprocal(size: int) -> tuple[int, int]:
    """Numbers m and s for which n / size is n m / 2^(32 + s) without its fraction, for 0 <= n < 2^30.

    m is between 2^31 and 2^32, given as the int32 of the same bits, and made odd, since Triton would compile
    kernels anew for multiples of 16. The size is at least 2.
    """
    bits = (size - 1).bit_length()
    multiplier = -(-(1 << 31 + bits) // size) | 1
    return multiplier - (1 << 32), bits - 1


def element_walk(shape: torch.Size, leader: Tensor, tensors: Sequence[Tensor | None]) -> Walk:
    """A walk over the elements of a shape, to which all tensors broadcast, in the order of `leader`."""
    if all(x is None or (x.shape == shape and x.is_contiguous()) for x in tensors):
        arguments = tuple(ABSENT if x is None else (x, 1, None) for x in tensors)
        return Walk((shape.numel(),), (), (), 1, arguments)
    order = memory_order(shape, leader)
    strides = [[x.expand(shape).stride(d) for d in order] for x in tensors if x is not None]
    sizes, found = merged([shape[d] for d in order], strides)
    remaining = iter(found)
    arguments = tuple(ABSENT if x is None else _argument(x, sizes, next(remaining)) for x in tensors)
    by_number = all(outer is None for _, _, outer in arguments)
    multipliers, shifts = zip(*map(reciprocal, sizes[1:]), strict=True) if len(sizes) > 1 else ((), ())
    pack = 1 if by_number else gcd(sizes[-1], MOST_NEIGHBOURS)
    return Walk(sizes, multipliers, shifts, pack, arguments)


def _argument(x: Tensor, sizes: Strides, strides: Strides) -> TensorArgument:
    *outer, inner = strides
    if not any(strides):
        return x, None, None
    length = sizes[-1]
    for size, stride in zip(reversed(sizes[:-1]), reversed(outer), strict=True):
        if stride != length * inner:
            return x, inner or None, tuple(outer)
        length *= size
    return x, inner, None


@triton.jit
def _packs(BLOCK: tl.constexpr, PACK: tl.constexpr):
    """The numbers of the first elements of packs, within a tile."""
    if PACK == 1:
        return tl.arange(0, BLOCK)
    else:
        return (tl.arange(0, BLOCK // PACK) * PACK)[:, None]


@triton.jit
def lanes(BLOCK: tl.constexpr, PACK: tl.constexpr):
    """The numbers of the elements within a tile."""
    if PACK == 1:
        return tl.arange(0, BLOCK)
    else:
        return _packs(BLOCK, PACK) + tl.arange(0, PACK)[None, :]


@triton.jit
def quotient(n, size, multiplier, shift):
    """The integer part of n / size, of int32 by a multiplication; see `reciprocal`."""
    if n.dtype == tl.int32:
        product = tl.umulhi(n.to(tl.uint32, bitcast=True), multiplier.to(tl.uint32, bitcast=True))
        return (product >> shift).to(tl.int32, bitcast=True)
    else:
        return n // size


@triton.jit
def pointers(tensor, walk, begin, BLOCK: tl.constexpr, PACK: tl.constexpr):
    """Pointers to a tile's numbers: to one for each element, or for each pack or for all if they share it."""
    if tensor[2] is None:
        if tensor[1] is None:
            return tensor[0]
        else:
            return tensor[0] + tl.full((), begin, tl.int64) * tensor[1] + lanes(BLOCK, PACK) * tensor[1]
    else:
        sizes = walk[0]
        rest = begin + _packs(BLOCK, PACK)
        offset = (rest * 0).to(tl.int64)
        for d in tl.static_range(len(sizes) - 1, 0, -1):
            outer = quotient(rest, sizes[d], walk[1][d - 1], walk[2][d - 1])
            place = rest - outer * sizes[d]
            rest = outer
            if d < len(sizes) - 1:
                offset += place.to(tl.int64) * tensor[2][d]
            elif tensor[1] is not None:
                if PACK > 1:
                    place = tl.multiple_of(place, [PACK, PACK])
                offset += place.to(tl.int64) * tensor[1]
        start = tensor[0] + (offset + rest.to(tl.int64) * tensor[2][0])
        if PACK == 1 or tensor[1] is None:
            return start
        else:
            return start + tl.arange(0, PACK)[None, :] * tensor[1]


@triton.jit
def load_tiles(tensor, walk, begin, end, BLOCK: tl.constexpr, PACK: tl.constexpr, TILES: tl.constexpr):
    """A turn's one or two tiles of a tensor, as `pointers` leads to their numbers; zeros if it is absent.

    Only elements before `end` are read, if that is not None.
    """
    if tensor[0] is None:
        return 0, 0
    elif TILES == 1:
        return _load(tensor, walk, begin, end, BLOCK, PACK), 0
    else:
        first = _load(tensor, walk, begin, end, BLOCK, PACK)
        return first, _load(tensor, walk, begin + BLOCK, end, BLOCK, PACK)


@triton.jit
def _load(tensor, walk, begin, end, BLOCK: tl.constexpr, PACK: tl.constexpr):
    at = pointers(tensor, walk, begin, BLOCK, PACK)
    if end is None or (tensor[1] is None and tensor[2] is None):
        return tl.load(at)
    elif tensor[1] is None:
        return tl.load(at, mask=begin + _packs(BLOCK, PACK) < end)
    else:
        return tl.load(at, mask=begin + lanes(BLOCK, PACK) < end)


@triton.jit
def widened(tensor, tile, DTYPE: tl.constexpr, BLOCK: tl.constexpr, PACK: tl.constexpr):
    """A tile of a tensor in the dtype that is computed in, a number for each element; None if absent."""
    if tensor[0] is None:
        return
    else:
        return tl.broadcast_to(_converted(tile, DTYPE), lanes(BLOCK, PACK).shape)


@triton.jit
def _converted(x, DTYPE: tl.constexpr):
    """Numbers in another dtype."""
    if INTERPRETED:
        return x.to(DTYPE)
    elif x.dtype == tl.bfloat16 and x.numel >= PAIRS and has_ptx():
        # Two numbers that share a register, by an instruction each; the compiler takes three for two.
        pairs: tl.constexpr = "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;"
        return tl.inline_asm_elementwise(pairs, "=f,=f,r", [x], tl.float32, True, 2).to(DTYPE)
    else:
        return x.to(DTYPE)


@triton.jit
def store_elements(tensor, walk, begin, end, value, BLOCK: tl.constexpr, PACK: tl.constexpr):
    """Writes the numbers of a tile, of elements before `end` if that is not None, if there is a tensor."""
    if tensor[0] is not None:
        at = pointers(tensor, walk, begin, BLOCK, PACK)
        store(at, value, None if end is None else begin + lanes(BLOCK, PACK) < end)

"""How kernels find, read and write the numbers of tensors, whose arguments `iteration.py` makes.

Programs take a tile of positions at a time: `position` is a block of their numbers, and a mask says which of
them are there. `DTYPE` is what a kernel computes in, float32 or float64.
"""

import triton
import triton.language as tl


@triton.jit
def offset_of(index, sizes, strides, PACK: tl.constexpr = 1, SPAN: tl.constexpr = None):
    """How far from a tensor's first number the one lies that a walk over `sizes` visits as number `index`.

    In elements, as int64; a multiple of PACK. A thread is to have no more than SPAN neighbours.
    """
    if len(sizes) == 1:
        # A stride of 1 is compiled in: neighbours are seen to be neighbours.
        index = index.to(tl.int64)
        if SPAN is not None:
            index = tl.max_contiguous(index, SPAN)
        offset = index * strides[0]
    else:
        rest = index
        offset = (index * 0).to(tl.int64)
        for d in tl.static_range(len(sizes) - 1, 0, -1):
            offset += (rest % sizes[d]).to(tl.int64) * strides[d]
            rest = rest // sizes[d]
        offset += rest.to(tl.int64) * strides[0]
        if SPAN is not None:
            offset = tl.max_contiguous(offset, SPAN)
    # Said of the operation above, which must be in the same function: compilers would forget a call's.
    return offset if PACK == 1 else tl.multiple_of(offset, PACK)


@triton.jit
def load_numbers(tensor, sizes, position, mask, other, DTYPE: tl.constexpr):
    """A number of each position, `other` outside the mask. None if the tensor, without axis, is absent."""
    if tensor[0] is None:
        return
    else:
        return tl.load(tensor[0] + offset_of(position, sizes, tensor[1]), mask=mask, other=other).to(DTYPE)


@triton.jit
def store_numbers(tensor, sizes, position, mask, value):
    """Writes a number for each position, if the tensor, without axis, is not absent."""
    if tensor[0] is not None:
        store(tensor[0] + offset_of(position, sizes, tensor[1]), value, mask)


@triton.jit
def store(pointers, value, mask):
    """Writes numbers in the memory's dtype."""
    dtype: tl.constexpr = pointers.dtype.element_ty
    if value.dtype == tl.float64 and dtype != tl.float64:
        # By way of float32: no device converts float64 to 16 bits in one step.
        tl.store(pointers, value.to(tl.float32).to(dtype), mask=mask)
    else:
        tl.store(pointers, value.to(dtype), mask=mask)


@triton.jit
def row_starts(tensor, sizes, position, PACK: tl.constexpr = 1, SPAN: tl.constexpr = None):
    """Pointers to where the rows of some positions begin, in a tensor with an axis; None if it is absent.

    Every row begins at a multiple of PACK elements from the tensor's first. Where rows lie side by side, a
    thread is to have no more than SPAN neighbours.
    """
    if tensor[0] is None:
        return
    else:
        return tensor[0] + offset_of(position, sizes, tensor[2], PACK, SPAN)


@triton.jit
def elements_of(tensor, rows, c):
    """Pointers to elements c along the axis, in rows that begin at `rows`; shapes broadcast."""
    return rows + c.to(tl.int64) * tensor[1]

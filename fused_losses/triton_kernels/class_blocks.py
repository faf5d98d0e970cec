"""Blocks of rows and their classes: PARTS pieces of WIDTH neighbouring classes each, of ROWS rows.

A number of each class of each row is a block of these three dimensions; one of each row is (ROWS), and one of
each class a block of a single row. Triton gives the last dimension to neighbouring threads first, then rows,
and leaves parts to each thread. So WIDTH says how many threads share a row, and a thread has PARTS pieces of
it. Nobody but this module knows the order of dimensions.

A pack is PACK neighbours that are read and written at once. Rows begin and end with whole packs, unless they
are SHIFTED: then a row's block begins with the first pack that lies in the row, `skipped` elements, (ROWS),
after the row; and its ends, before and after whole packs, are a block by themselves. The places i of a block
count from its begin: class c is at place c - skipped.
"""

import triton
import triton.language as tl

ROWS_FIRST = tl.constexpr(tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8))
"""Whether the dimensions are rows, parts, width, and not parts, rows, width.

Of dimensions along which no neighbours are seen in memory, Triton 3.8 gives the last one to neighbouring
threads first, and up to 3.6 (3.7 was not tried) it was the first one.
"""


@triton.jit
def in_packs(classes, PACK: tl.constexpr, SHIFTED: tl.constexpr):
    """The number of classes, in words that tell compilers that PACK divides it, if rows are not shifted.

    So they see that the places of a pack are all there or none of them.
    """
    return classes if SHIFTED else classes // PACK * PACK


@triton.jit
def places_from(first, PARTS: tl.constexpr, WIDTH: tl.constexpr):
    """The places of a block whose first one is `first`, of a single row."""
    part = tl.arange(0, PARTS)
    part = part[None, :, None] if ROWS_FIRST else part[:, None, None]
    return first + part * WIDTH + tl.arange(0, WIDTH)[None, None, :]


@triton.jit
def zeros(PARTS: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr, DTYPE: tl.constexpr):
    """A block of zeros."""
    return tl.zeros((ROWS, PARTS, WIDTH) if ROWS_FIRST else (PARTS, ROWS, WIDTH), DTYPE)


@triton.jit
def of_rows(numbers):
    """Numbers of rows, (ROWS), in a shape that broadcasts to blocks."""
    return numbers[:, None, None] if ROWS_FIRST else numbers[None, :, None]


@triton.jit
def sum_of_classes(block):
    """The sum of each row, (ROWS)."""
    return tl.sum(tl.sum(block, axis=1 if ROWS_FIRST else 0), axis=1)


@triton.jit
def largest_of_classes(block):
    """The largest number of each row, (ROWS)."""
    return tl.max(tl.max(block, axis=1 if ROWS_FIRST else 0), axis=1)


@triton.jit
def skipped_of(rows, PACK: tl.constexpr, SHIFTED: tl.constexpr):
    """How many elements of a row lie before its first whole pack, (ROWS), from pointers to rows."""
    if SHIFTED:
        itemsize: tl.constexpr = rows.dtype.element_ty.primitive_bitwidth // 8
        place = (rows.to(tl.int64) // itemsize % PACK).to(tl.int32)
        return (PACK - place) % PACK
    else:
        return tl.zeros(rows.shape, tl.int32)


@triton.jit
def block_starts(rows, skipped, PACK: tl.constexpr, SHIFTED: tl.constexpr):
    """Pointers to where the blocks of rows begin, from pointers to rows; None if there are none."""
    if rows is None:
        return
    elif SHIFTED:
        itemsize: tl.constexpr = rows.dtype.element_ty.primitive_bitwidth // 8
        return tl.multiple_of(rows + skipped, PACK * itemsize)
    else:
        return rows


@triton.jit
def are_there(i, rows, skipped, classes, PACK: tl.constexpr, SHIFTED: tl.constexpr):
    """Which places of a block are classes, in rows that are chosen by a mask, (ROWS)."""
    if SHIFTED:
        return of_rows(rows) & (i // PACK < of_rows((classes - skipped) // PACK))
    else:
        return of_rows(rows) & (i < classes)


@triton.jit
def are_stored(i, rows, skipped, classes, PACK: tl.constexpr, SHIFTED: tl.constexpr):
    """The same, of what is written.

    Where there is no pack, it is said in other words: compilers would keep the predicate of each element from
    its load to its store, which takes more instructions and registers than to compare again.
    """
    if PACK > 1:
        return are_there(i, rows, skipped, classes, PACK, SHIFTED)
    else:
        return i <= of_rows(tl.where(rows, classes, 0) - 1)


@triton.jit
def ends_of(rows, skipped, classes, PACK: tl.constexpr):
    """The ends of shifted rows, of at least 2 PACK classes: their places, and which of these are there.

    Both are blocks of a single part, which is 2 PACK wide.
    """
    j = tl.arange(0, 2 * PACK)[None, None, :]
    count = of_rows(classes - skipped)
    is_first = j < PACK
    i = tl.where(is_first, j - of_rows(skipped), count // PACK * PACK + j - PACK)
    return i, of_rows(rows) & tl.where(is_first, i < 0, i < count)

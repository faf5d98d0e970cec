"""How work is cut into programs and threads, from shapes and dtypes alone: nothing is tried out at run time.

There is a function for each engine. The tile that it chooses is compiled in, so sizes of tiles are powers of
two: few kernels are compiled. Sizes of tensors are arguments of the kernels.

Programs are persistent: there are as many as the device can hold, and each takes tiles in turn. So a launch
has few sums to add up at its end, and what all tiles share is computed once for each program.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
import triton

WARP = 32
"""Threads of a warp, as tilings count them; `launch.compiler_options` knows the device's own warps."""

LEAST_WARPS = 4
"""The fewest that keep a processor's four schedulers busy."""

MOST_WARPS = 32
"""The most that a program may have, on every device."""

THREADS_PER_PROCESSOR = 2048
"""What a processor of the server GPUs holds. Others hold fewer, and start the rest later."""

INTERPRETED_PROGRAMS = 2
"""The interpreter runs one program after the other; two of them show that work is shared rightly."""


@cache
def _processors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@dataclass(frozen=True)
class Tiling:
    """What a program computes in one step, a tile of rows times columns, and the threads that share it.

    Rows are positions, and columns classes or elements of a vector; for losses of elements, rows are
    elements, and there is one column.
    """

    rows: int
    columns: int
    num_warps: int
    parts: int = 1
    """Of a row's columns; see `class_blocks.py`."""
    span: int = 1
    """Neighbouring rows that a thread has, where these lie side by side."""

    @property
    def width(self) -> int:
        """Columns of a part."""
        return self.columns // self.parts

    def programs(self, count: int, device: torch.device) -> int:
        """How many programs share `count` rows: as many as there is work and room for.

        There is at least one, which writes the loss of no elements.
        """
        if device.type == "cuda":
            most = _processors(device) * (THREADS_PER_PROCESSOR // (self.num_warps * WARP))
        else:
            most = INTERPRETED_PROGRAMS
        return max(1, min(triton.cdiv(count, self.rows), most))


def power_of_two(n: int) -> int:
    """The least that is not below n."""
    return int(triton.next_power_of_2(max(n, 1)))


IN_FLIGHT = 48
"""Bytes that a thread of a pointwise loss reads at least before it computes. Seven programs on a processor
have 42 KiB in flight then; an H100 needs 20 to keep its memory busy, and a B200 45.
"""

POINTWISE_REGISTERS = 72
"""What a thread of a pointwise loss may have, so that seven programs share the registers of a processor."""

MOST_PROGRAMS = 7 * 128
"""The most programs of a pointwise loss, on every device: server GPUs hold that many at a time, as they have
108 (A100), 132 (H100) or 148 (B200) processors, and most losses need fewer registers."""


def for_pointwise(itemsizes: Sequence[int]) -> tuple[Tiling, int]:
    """For losses of elements, which have so many bytes in each operand: the tile, and how many a turn takes.

    A thread has as many elements as 128 bits hold of the narrowest operand, and reads those of one or two
    tiles before it computes.
    """
    elements = 16 // min(itemsizes)
    tile = Tiling(LEAST_WARPS * WARP * elements, 1, LEAST_WARPS)
    return tile, 1 if elements * sum(itemsizes) >= IN_FLIGHT else 2


def pointwise_programs(count: int, turn: int) -> int:
    """How many programs share `count` elements, of which each takes `turn` at a time.

    It depends on the sizes alone, and so does the order of the sum. All programs have the same number of
    turns, or one less. There is at least one, which writes the loss of no elements.
    """
    turns = triton.cdiv(count, turn)
    return max(1, triton.cdiv(turns, max(1, triton.cdiv(turns, MOST_PROGRAMS))))


THREAD_ELEMENTS = 32
"""Elements of a tile that a thread holds, as float32 in registers. A program of 32 warps has 64 registers for
each thread; half of them are left for addresses, masks and whatever the formula needs."""

LONGEST_ROW = THREAD_ELEMENTS * WARP * MOST_WARPS
"""The longest row that one program can hold in registers: 32768 elements."""

SECTOR = 8
"""Neighbours that memory is worth being asked for: 8 of float32 are the 32 bytes that it answers with."""

STREAMED = 4096
"""Elements of a tile that need not stay: few enough that several programs share a processor, so that while
one of them waits for memory, another computes."""


def for_softmax(
    classes: int, itemsize: int, *, pack: int | None, even: bool, reads_once: bool, tensors: int
) -> Tiling:
    """For softmax. A tile that holds whole rows stays in registers.

    Args:
        classes: How many a row has, or how many places its block needs.
        itemsize: Bytes of a logit.
        pack: How many classes, which lie side by side, are read at once. None: positions lie side by side.
        even: Whether positions may be read in pairs.
        reads_once: Rows should stay where they fit.
        tensors: How many tensors have a number for each class of a row.
    """
    columns = power_of_two(classes)
    tensors = power_of_two(tensors)
    # Rows of 16 bits need no second sum, and a shorter exponential: registers that others do not have left.
    most = LONGEST_ROW // tensors // (itemsize // 2)
    if pack is not None:
        elements = THREAD_ELEMENTS // tensors // (4 if itemsize == 8 else 1)
        if not reads_once or columns > most:
            columns = min(columns, STREAMED)
        return _of_neighbours(columns, pack, itemsize, elements)
    # A thread has whole positions where they are short: all warps have the same classes then, and need no
    # addresses of their own.
    elements = 2 * THREAD_ELEMENTS // tensors // (itemsize // 2)
    if columns <= elements:
        span = min(2, elements // columns) if even else 1
        return Tiling(LEAST_WARPS * WARP * span, columns, LEAST_WARPS, columns, span)
    elements = THREAD_ELEMENTS // 2 // tensors // (2 if itemsize == 8 else 1)
    most //= 4
    if not reads_once or columns * SECTOR > most:
        columns = min(columns, STREAMED // WARP)
    rows = min(WARP, most // columns)
    num_warps = max(LEAST_WARPS, rows * columns // (elements * WARP))
    return Tiling(rows, columns, num_warps, columns)


VECTOR_ELEMENTS = 16
"""Elements that a thread has of each of a loss's vectors: two loads of 128 bits in flight for each operand of
16 bits."""

POWER_ELEMENTS = 4
"""The same where powers are taken: a power is a hundred instructions, once for each element and distance, and
those of more elements would not fit into the cache of instructions."""

VECTOR_WARPS = 16
"""The most that leave each thread 128 registers."""


def for_vectors(length: int, *, is_float64: bool, has_powers: bool) -> tuple[Tiling, bool]:
    """For vectors of `length` elements: the tile, and whether it holds whole rows, which stay in registers.

    Rows that do not fit are added up by lanes, whose sums need registers, too: half as many elements at once.
    So do elements of float64.
    """
    elements = (POWER_ELEMENTS if has_powers else VECTOR_ELEMENTS) // (2 if is_float64 else 1) * WARP
    columns = power_of_two(length)
    if columns > elements * VECTOR_WARPS:
        return Tiling(1, elements * VECTOR_WARPS // 2, VECTOR_WARPS), False
    num_warps = max(LEAST_WARPS, columns // elements)
    return Tiling(elements * num_warps // columns, columns, num_warps), True


NARROWEST = 8
"""Bytes that threads read at least of a row at once, where it has as many: a quarter of a sector. The others
are read soon after, from the first-level cache, which answers with whole sectors."""


def _of_neighbours(columns: int, pack: int, itemsize: int, elements: int) -> Tiling:
    """A tile of columns that lie side by side: a thread has so many `elements` of it, in packs.

    Short rows have a few threads each: what is known of a row, its label, maximum and sums, every one of its
    threads has to compute.
    """
    if pack == 1:
        elements = max(1, elements // 2)  # each has an address of its own
    threads = min(max(1, columns // elements), MOST_WARPS * WARP)
    width = min(columns, max(threads * pack, NARROWEST // itemsize))
    threads = width // min(pack, width)
    num_warps = max(LEAST_WARPS, threads // WARP)
    return Tiling(max(1, num_warps * WARP // threads), columns, num_warps, columns // width)


def for_one_target(classes: int, itemsize: int, pack: int) -> Tiling:
    """For margins over the class of one label in each row: rows are read once, chunk by chunk."""
    elements = THREAD_ELEMENTS // (4 if itemsize == 8 else 1)
    return _of_neighbours(min(power_of_two(classes), STREAMED), pack, itemsize, elements)


TARGETS_ELEMENTS = THREAD_ELEMENTS // 2
"""Elements that a thread has of each tile where rows have several targets: of scores, values and slopes at
once, and of who is a target."""

TARGETS_WARPS = 16
"""The most there, which leave each thread 128 registers for these tiles: 8192 elements of float32."""


def for_several_targets(classes: int, *, is_float64: bool) -> tuple[Tiling, bool]:
    """For margins over a list of classes in each row: a tile of one row, and whether it holds it whole."""
    most = TARGETS_ELEMENTS * WARP * TARGETS_WARPS // (2 if is_float64 else 1)
    columns = min(power_of_two(classes), most)
    num_warps = max(1, columns // (TARGETS_ELEMENTS * WARP))
    return Tiling(1, columns, num_warps), columns >= classes


def _tiling(rows: int, columns: int, least: int) -> Tiling:
    """Short rows share a program until it has `least` elements; a thread has THREAD_ELEMENTS where it can."""
    rows = max(rows, least // columns)
    num_warps = rows * columns // (THREAD_ELEMENTS * WARP)
    return Tiling(rows, columns, min(MOST_WARPS, max(LEAST_WARPS, num_warps)))


LABEL_BYTES = 8


def counts_labels(programs: int, row_bytes: int) -> bool:
    """Whether each program should read all labels, rather than one more launch read them once.

    For one position, all programs together read its label that many times, and its row is read and written
    once. Up to an eighth of the latter is cheaper than a launch, the more so as labels come from the
    second-level cache.
    """
    return programs * LABEL_BYTES <= 2 * row_bytes // 8

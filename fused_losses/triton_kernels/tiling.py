"""How work is cut into programs and threads, from shapes and dtypes alone: nothing is tried out at run time.

A tiling fixes what is compiled in, so tilings are few: powers of two. Sizes themselves are arguments of the
kernels.

Programs are persistent: there are as many as the device can hold, and each takes tiles in turn. So a launch
has few sums to add up at its end, and what all tiles share is computed once for each program.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton

WARP = 32

LEAST_WARPS = 4
"""The fewest that keep a processor's four schedulers busy."""

THREADS_PER_PROCESSOR = 2048
"""Of the server GPUs that Triton compiles for; the others hold fewer programs at a time, no matter."""

INTERPRETED_PROCESSORS = 1
"""The interpreter runs one program after the other; a few of them show that work is shared rightly."""


@cache
def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return INTERPRETED_PROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@dataclass(frozen=True)
class Tiling:
    """A tile of rows times columns for each step of a program, and the threads that share it."""

    rows: int
    columns: int
    num_warps: int

    def programs(self, tiles: int, device: torch.device) -> int:
        """How many there is work and room for, and at least one, which writes the loss of no elements."""
        resident = max(1, THREADS_PER_PROCESSOR // (self.num_warps * WARP))
        if device.type != "cuda":
            resident = 2
        return max(1, min(tiles, resident * _processors(device)))


def for_pointwise(itemsize: int) -> Tiling:
    """For losses of elements: a load of 128 bits by each thread, two of 32-bit operands."""
    return Tiling(1, LEAST_WARPS * WARP * 8 // max(1, itemsize // 4), LEAST_WARPS)


def power_of_two(n: int) -> int:
    """The least that is not below n."""
    return int(triton.next_power_of_2(max(n, 1)))


THREAD_ELEMENTS = 32
"""Of a tile, as float32 in registers. A program of 32 warps has 64 registers for each thread; half of them
are left for addresses, masks and whatever the formula needs."""

MOST_WARPS = 32
"""Of a program, on every device."""

RESIDENT = THREAD_ELEMENTS * WARP * MOST_WARPS
"""The longest row that one program can hold in registers: 32768 elements."""

SECTOR = 8
"""Neighbours that memory is worth being asked for: of float32, the 32 bytes that it answers with."""

STREAMED = 4096
"""Elements of a tile that need not stay: few enough that several programs share a processor, and that while
one of them waits for memory, another computes."""


def for_softmax(
    count: int, itemsize: int, *, in_rows: bool, reads_once: bool, tiles: int
) -> tuple[Tiling, bool]:
    """For softmax over `count` classes: the tile, and whether it holds whole rows that stay in registers.

    `in_rows`: classes lie side by side; otherwise positions do, and a tile wants as many of them as a warp
    has threads. `reads_once`: rows should stay where they fit. `tiles`: how many tensors of that size a
    position has.
    """
    columns = power_of_two(count)
    rows, fewest = (1, 1) if in_rows else (WARP, SECTOR)
    # Rows of 16 bits need no second sum, and a shorter exponential: registers that others do not have left.
    most = RESIDENT // power_of_two(tiles) // (itemsize // 2)
    if not in_rows:
        # Each thread has rows of its own, and needs registers for what is known of them.
        most //= 4
    if not reads_once or columns * fewest > most:
        columns = min(columns, STREAMED // rows)
        return _tile(rows, columns, STREAMED), reads_once and columns >= count
    rows = min(rows, most // columns)
    return _tile(rows, columns, min(most, STREAMED)), True


VECTOR_ELEMENTS = 16
"""Of each of a loss's vectors, for a thread: two loads of 128 bits in flight for each operand of 16 bits."""

POWERS = 4
"""Of elements whose powers are taken: a power is a hundred instructions, once for each element and distance;
those of more elements would not fit into the cache of instructions."""

VECTOR_WARPS = 16
"""The most that leave each thread 128 registers."""


def for_vectors(length: int, *, wide: bool, powers: bool) -> tuple[Tiling, bool]:
    """For distances of vectors: the tile, and whether it holds whole rows, which stay in registers.

    Rows that do not fit are added up by lanes, whose sums need registers, too: half as many elements at once.
    """
    elements = (POWERS if powers else VECTOR_ELEMENTS) // (2 if wide else 1) * WARP
    columns = power_of_two(length)
    if columns > elements * VECTOR_WARPS:
        return Tiling(1, elements * VECTOR_WARPS // 2, VECTOR_WARPS), False
    num_warps = max(LEAST_WARPS, columns // elements)
    return Tiling(elements * num_warps // columns, columns, num_warps), True


def for_class_margin(count: int, wide: bool, lists: bool) -> tuple[Tiling, bool]:
    """For margins between `count` classes: the tile, and whether it holds whole rows.

    Lists of targets take a row for each program, of four tensors: scores, values, slopes and who is a target.
    """
    columns = power_of_two(count)
    if not lists:
        columns = min(columns, STREAMED)
        return _tile(1, columns, STREAMED), columns >= count
    columns = min(columns, 2 * STREAMED // (2 if wide else 1))
    return Tiling(1, columns, min(16, max(1, columns // (WARP * THREAD_ELEMENTS // 2)))), columns >= count


def _tile(rows: int, columns: int, least: int) -> Tiling:
    """Short rows share a program, until it has enough to do."""
    rows = max(rows, least // columns)
    num_warps = rows * columns // (THREAD_ELEMENTS * WARP)
    return Tiling(rows, columns, min(MOST_WARPS, max(LEAST_WARPS, num_warps)))


def counts_labels(programs: int, row_bytes: int) -> bool:
    """Whether each program should read all labels, rather than one more launch read them once.

    A label is 8 bytes, for each program; its row is read and written once. Up to an eighth of that is cheaper
    than a launch, the more so as labels come from the second-level cache.
    """
    return programs * 8 <= 2 * row_bytes // 8

"""What a run says as a whole: geometric means over the losses beside their targets, and who is slower."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from fused_losses.bench.heads import HEADS
from fused_losses.bench.rows import Row, steps
from fused_losses.bench.variants import USUAL

HOW = (
    "Geometric means, of each loss over its shapes first, then over the losses. "
    "Floor: a copy of the bytes that must move, in the same run."
)

# The part by which a loss of medium or small size may be slower than eager torch before it counts: noise.
NOISE = 0.1

# The ratios of speed below which a loss counts as slower, by size.
LIMITS = {"large": 1.0, "medium": 1 - NOISE, "small": 1 - NOISE}


@dataclass(frozen=True)
class Ratios:
    """Times faster than eager torch and than torch.compile, and times the floor."""

    vs_eager: float | None
    vs_compile: float | None
    vs_floor: float | None


# What the project wants to reach on a CPU with large inputs, by dtype.
TARGETS = {"float32": Ratios(10, 5, 2.5), "bfloat16": Ratios(7, 3.5, 2)}


@dataclass(frozen=True)
class Mean:
    """The geometric means of one provider over losses with inputs of a dtype.

    Losses behind a linear layer have a mean of their own, and no targets: most of a step is the layer's.
    """

    dtype: str
    provider: str
    losses: int
    """How many losses were timed."""
    ratios: Ratios
    is_behind_layer: bool = False


def means(rows: Sequence[Row], size: str = "large") -> list[Mean]:
    """Per dtype and provider, the geometric means over the losses that were timed, called as usual."""
    groups: dict[tuple[str, str, bool], list[Row]] = defaultdict(list)
    for row in steps(rows):
        if row.size == size and row.median_ms is not None and row.variant == USUAL:
            groups[row.dtype, row.provider, row.loss in HEADS].append(row)
    return [
        Mean(
            dtype,
            provider,
            len({row.loss for row in group}),
            Ratios(
                _over_losses(group, lambda row: row.vs_eager),
                _over_losses(group, lambda row: row.vs_compile),
                _over_losses(group, lambda row: row.vs_floor),
            ),
            is_behind_layer,
        )
        for (dtype, provider, is_behind_layer), group in groups.items()
    ]


def _over_losses(rows: Iterable[Row], ratio: Callable[[Row], float | None]) -> float | None:
    """The geometric mean of a ratio over losses, each of which counts once, however many shapes it has."""
    by_loss: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        value = ratio(row)
        if value is not None:
            by_loss[row.loss].append(value)
    if not by_loss:
        return None
    return statistics.geometric_mean(map(statistics.geometric_mean, by_loss.values()))


def slower_than_eager(rows: Iterable[Row]) -> list[Row]:
    """Rows below the limit of their size."""
    return [row for row in rows if row.vs_eager is not None and row.vs_eager < LIMITS[row.size]]


def slower_than_compile(rows: Iterable[Row]) -> list[Row]:
    """Rows of large inputs below their limit. With smaller ones, a compiled call's overhead decides."""
    return [
        row
        for row in rows
        if row.size == "large" and row.vs_compile is not None and row.vs_compile < LIMITS[row.size]
    ]

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

# What a loss may be slower than eager torch, in medium and small sizes, before it counts: noise.
NOISE = 0.1

# The sizes of which it is asked that no loss be slower, and the ratios below which it is.
LIMITS = {"large": 1.0, "medium": 1 - NOISE, "small": 1 - NOISE}


@dataclass(frozen=True)
class Ratios:
    """Times faster than eager torch and than torch.compile, and times the floor."""

    vs_eager: float | None
    vs_compile: float | None
    vs_floor: float | None


# For large inputs.
TARGETS = {"float32": Ratios(10, 5, 2.5), "bfloat16": Ratios(7, 3.5, 2)}


@dataclass(frozen=True)
class Mean:
    """What one provider reaches with large inputs of a dtype; `losses` of them were timed.

    Losses behind a linear layer have a mean of their own, and no targets: most of a step is the layer's.
    """

    dtype: str
    provider: str
    losses: int
    ratios: Ratios
    is_of_losses: bool = True


def means(rows: Sequence[Row], size: str = "large") -> list[Mean]:
    """Per dtype and provider, the geometric means over the losses that were timed, called as usual."""
    groups: dict[tuple[str, str, bool], list[Row]] = defaultdict(list)
    for row in steps(rows):
        if row.size == size and row.median_ms is not None and row.variant == USUAL:
            groups[row.dtype, row.provider, row.loss not in HEADS].append(row)
    return [
        Mean(
            dtype,
            provider,
            len({row.loss for row in mine}),
            Ratios(
                _over_losses(mine, lambda row: row.vs_eager),
                _over_losses(mine, lambda row: row.vs_compile),
                _over_losses(mine, lambda row: row.vs_floor),
            ),
            is_of_losses,
        )
        for (dtype, provider, is_of_losses), mine in groups.items()
    ]


def _over_losses(rows: Iterable[Row], ratio: Callable[[Row], float | None]) -> float | None:
    """Losses count alike, however many shapes they have."""
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
    """The same; asked of large inputs only, as a compiled call has more overhead than any other."""
    return [
        row
        for row in rows
        if row.size == "large" and row.vs_compile is not None and row.vs_compile < LIMITS[row.size]
    ]

"""What kernels may execute for each element (benchmarks/gpu-limits.csv), and which rows pass a limit.

A row of the table that says "goal" is one for CUDA, and Triton may execute WITHIN times as many instructions.
One that says "today" is of one backend, and holds what was seen when its engine had not been rewritten yet:
it may not become worse, and problems that were there are accepted. One that says "missed" stands beside a
goal that a backend has not reached, or is of CUDA where Triton executes less: it may not become worse either.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Protocol

TABLE = Path(__file__).parent / "gpu-limits.csv"

WITHIN = 1.2
"""How many instructions Triton may execute for each of CUDA's limit: it chooses its own layouts and
addresses."""

SLACK = 1.02
"""What another version of a compiler may add to what was seen."""

Key = tuple[str, str, str, str, str]
"""Loss, dtype, shape, what is special, direction."""


class Counted(Protocol):
    """A row of the report, as far as limits need it."""

    backend: str
    instructions: float
    problems: str
    is_pointwise: bool

    @property
    def key(self) -> Key: ...


@dataclass
class Limit:
    """A row of the table."""

    loss: str
    dtype: str
    shape: str
    special: str
    direction: str
    backend: str
    instructions: float
    """For each element, at most."""
    kind: str
    """"goal", "today" or "missed"."""
    accepted: str = ""
    """Problems, as the report says them."""

    @property
    def key(self) -> Key:
        return self.loss, self.dtype, self.shape, self.special, self.direction


def read(table: Path = TABLE) -> list[Limit]:
    """The limits of a table."""
    with table.open(newline="") as file:
        return [Limit(**{**row, "instructions": float(row["instructions"])}) for row in csv.DictReader(file)]


def write(limits: Iterable[Limit], table: Path = TABLE) -> None:
    """Writes a table."""
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Limit)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(limit) for limit in limits)


def renewed(limits: Iterable[Limit], rows: Iterable[Counted]) -> list[Limit]:
    """The goals, rows that miss one, and what is seen today of other engines than the pointwise one."""
    goals = [limit for limit in limits if limit.kind == "goal"]
    keys = {limit.key for limit in goals}
    rows = list(rows)

    def seen(row: Counted, kind: str, accepted: str) -> Limit:
        return Limit(*row.key, row.backend, math.ceil(row.instructions * SLACK * 10) / 10, kind, accepted)

    missed = [seen(row, "missed", "") for row in rows if too_many(row, rows, goals)]
    today = [seen(row, "today", row.problems) for row in rows if row.key not in keys and not row.is_pointwise]
    return goals + missed + today


def most(limits: Iterable[Limit], key: Key, backend: str) -> float | None:
    """How many instructions a backend may execute."""
    of = {limit.backend: limit for limit in limits if limit.key == key and limit.kind != "missed"}
    goal, own = of.get("cuda"), of.get(backend)
    if backend == "triton" and goal and goal.kind == "goal":
        return goal.instructions * WITHIN
    return own.instructions if own else None


def too_many(row: Counted, rows: Iterable[Counted], limits: Iterable[Limit]) -> list[str]:
    """In words, what a row should not execute more than, but does; `rows` are of the same target."""
    limit = most(limits, row.key, row.backend)
    found = [] if limit is None or row.instructions <= limit else [f"at most {limit:g}"]
    if row.backend == "cuda" and row.is_pointwise:
        triton = [x.instructions for x in rows if x.backend == "triton" and x.key == row.key]
        found += [f"Triton {other:g}" for other in triton if row.instructions > other]
    return found


def failures(rows: Iterable[Counted], limits: Iterable[Limit]) -> list[str]:
    """What is wrong with rows of one target, in words, for each row that fails."""
    rows, limits = list(rows), list(limits)
    of = {(limit.key, limit.backend, limit.kind): limit for limit in limits}
    found = []
    for row in rows:
        today, missed = (of.get((row.key, row.backend, kind)) for kind in ("today", "missed"))
        wrong = [row.problems] if row.problems and not (today and row.problems == today.accepted) else []
        if not (missed and row.instructions <= missed.instructions):
            than = too_many(row, rows, limits)
            wrong += [f"{row.instructions:g} instructions for each element, {limit}" for limit in than]
        if wrong:
            found.append(f"{row.backend} {' '.join(filter(None, row.key))}: {'; '.join(wrong)}")
    return found

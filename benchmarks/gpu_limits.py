"""What kernels may execute for each element (benchmarks/gpu-limits.csv), and which rows pass a limit.

A row of the table that says "goal" is one for CUDA, and Triton may execute WITHIN times as many instructions.
One that says "today" is of one backend, and holds what was seen when its engine had not been rewritten yet:
it may not become worse, and problems that were there are accepted.
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
    """"goal" or "today"."""
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
    """The goals, and what is seen today of other engines than the pointwise one."""
    goals = [limit for limit in limits if limit.kind == "goal"]
    keys = {limit.key for limit in goals}
    seen = [
        Limit(*row.key, row.backend, math.ceil(row.instructions * SLACK * 10) / 10, "today", row.problems)
        for row in rows
        if row.key not in keys and not row.is_pointwise
    ]
    return goals + seen


def most(limits: dict[tuple[Key, str], Limit], key: Key, backend: str) -> float | None:
    """How many instructions a backend may execute."""
    goal = limits.get((key, "cuda"))
    if backend == "triton" and goal and goal.kind == "goal":
        return goal.instructions * WITHIN
    own = limits.get((key, backend))
    return own.instructions if own else None


def failures(rows: Iterable[Counted], limits: Iterable[Limit]) -> list[str]:
    """What is wrong with rows of one target, in words, for each row that fails."""
    rows = list(rows)
    of = {(limit.key, limit.backend): limit for limit in limits}
    triton = {row.key: row.instructions for row in rows if row.backend == "triton"}
    found = []
    for row in rows:
        own, limit = of.get((row.key, row.backend)), most(of, row.key, row.backend)
        wrong = [row.problems] if row.problems and not (own and row.problems == own.accepted) else []
        if limit is not None and row.instructions > limit:
            wrong.append(f"{row.instructions:g} instructions for each element, at most {limit:g}")
        if row.backend == "cuda" and row.is_pointwise and row.instructions > triton.get(row.key, math.inf):
            wrong.append(f"{row.instructions:g} instructions for each element, Triton {triton[row.key]:g}")
        if wrong:
            found.append(f"{row.backend} {' '.join(filter(None, row.key))}: {'; '.join(wrong)}")
    return found

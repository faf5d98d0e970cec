"""``compare``: what has become slower or faster between two runs, beyond the noise of each."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich import box
from rich.table import Table

from fused_losses.bench.options import read
from fused_losses.bench.report import console
from fused_losses.bench.rows import Machine, Row

Verdict = Literal["slower", "faster", "same"]

# The columns in which two runs must agree for their times to be comparable.
SAME_MACHINE = ("machine", "cores", "isa", "threads")

# Columns in which they may differ, with a warning.
SAME_VERSIONS = ("torch", "triton", "driver")

HOW = (
    "head/base: ratio of the medians, above 1 where head is slower. least, most: between the deciles, head's "
    "10 % over base's 90 % and the reverse. Slower or faster: both are on one side of 1; all else is noise."
)


@dataclass(frozen=True)
class Change:
    """One provider on one case in two runs: the time in head, the later run, over that in base.

    Attributes:
        case: loss, shape, dtype and pass.
        provider: as in the files.
        ratio: of the medians.
        least: head's 10th percentile over base's 90th.
        most: head's 90th percentile over base's 10th.
    """

    case: str
    provider: str
    ratio: float
    least: float
    most: float

    @property
    def verdict(self) -> Verdict:
        """Times vary between their deciles within a run: they differ where these ranges do not overlap."""
        if self.least > 1:
            return "slower"
        return "faster" if self.most < 1 else "same"


@dataclass(frozen=True)
class Comparison:
    """The changes of the rows that both runs timed, and how many rows only one of them timed."""

    changes: list[Change]
    only_base: int
    only_head: int

    def means(self) -> dict[str, float]:
        """The geometric mean of the ratios of each provider."""
        ratios: dict[str, list[float]] = defaultdict(list)
        for change in self.changes:
            ratios[change.provider].append(change.ratio)
        return {provider: statistics.geometric_mean(mine) for provider, mine in ratios.items()}


def compare(base: Sequence[Row], head: Sequence[Row]) -> Comparison:
    """Pairs the rows of two runs."""
    before, after = _timed(base), _timed(head)
    changes = [_change(row, after[key]) for key, row in before.items() if key in after]
    return Comparison(changes, len(before.keys() - after.keys()), len(after.keys() - before.keys()))


def _timed(rows: Sequence[Row]) -> dict[tuple[str, str], Row]:
    return {(f"{row.case} {row.pass_}", row.provider): row for row in rows if row.median_ms is not None}


def _change(base: Row, head: Row) -> Change:
    numbers = (base.median_ms, base.p10_ms, base.p90_ms, head.median_ms, head.p10_ms, head.p90_ms)
    median, p10, p90, new_median, new_p10, new_p90 = (number or 0.0 for number in numbers)
    return Change(
        f"{base.case} {base.pass_}",
        base.provider,
        new_median / median,
        least=new_p10 / p90,
        most=new_p90 / p10,
    )


def differences(base: Machine, head: Machine, names: Sequence[str]) -> list[str]:
    """The columns, among these, in which two runs differ: name and both values, in words."""
    pairs = ((name, getattr(base, name), getattr(head, name)) for name in names)
    return [f"{name}: {mine} and {theirs}" for name, mine, theirs in pairs if mine != theirs]


def command(
    base: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The run before.")],
    head: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The run after.")],
    fail_above: Annotated[
        float | None,
        typer.Option(
            min=1.0, help="Exit with status 1 if a case of any provider is slower by more, beyond noise."
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Cases that are the same, too.")] = False,
    any_machine: Annotated[
        bool, typer.Option("--any-machine", help="Compare runs of different machines nevertheless.")
    ] = False,
) -> None:
    """What is slower and what is faster in the second of two runs, case by case, beyond noise."""
    machine, before = read(base)
    other, after = read(head)
    unlike = differences(machine, other, SAME_MACHINE)
    if unlike and not any_machine:
        raise typer.BadParameter(f"runs of different machines ({'; '.join(unlike)}); see --any-machine")
    for text in unlike + differences(machine, other, SAME_VERSIONS):
        console.print(f"The runs differ in {text}", style="yellow", markup=False)
    found = compare(before, after)
    if not found.changes:
        raise typer.BadParameter("the two runs have no case and provider in common")
    shown = [change for change in found.changes if everything or change.verdict != "same"]
    if shown:
        console.print(_table(sorted(shown, key=lambda change: -change.ratio)))
    _print_counts(found)
    if fail_above is not None:
        failed = [
            change for change in found.changes if change.verdict == "slower" and change.ratio > fail_above
        ]
        console.print(f"Slower by more than {fail_above:g}: {len(failed) or 'none'}")
        if failed:
            raise typer.Exit(1)


def _table(changes: Sequence[Change]) -> Table:
    table = Table(title="Head against base", caption=HOW, box=box.SIMPLE, collapse_padding=True)
    for heading in ("case", "provider"):
        table.add_column(heading)
    for heading in ("head/base", "least", "most"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("")
    styles = {"slower": "bold red", "faster": "green", "same": ""}
    for change in changes:
        numbers = [f"{number:.3f}" for number in (change.ratio, change.least, change.most)]
        table.add_row(change.case, change.provider, *numbers, change.verdict, style=styles[change.verdict])
    return table


def _print_counts(found: Comparison) -> None:
    table = Table(title="All cases", box=box.SIMPLE, collapse_padding=True)
    table.add_column("provider")
    for heading in ("cases", "slower", "faster", "geometric mean"):
        table.add_column(heading, justify="right")
    for provider, mean in found.means().items():
        verdicts = [change.verdict for change in found.changes if change.provider == provider]
        counts = (len(verdicts), verdicts.count("slower"), verdicts.count("faster"))
        table.add_row(provider, *map(str, counts), f"{mean:.3f}")
    console.print(table)
    if found.only_base or found.only_head:
        console.print(f"Rows timed in one run only: {found.only_base} in base, {found.only_head} in head")

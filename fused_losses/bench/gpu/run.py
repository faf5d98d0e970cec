"""A run on a GPU: its tasks, and how their rows are compared, written and printed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

from rich.console import Console

from fused_losses.bench import rows as bench_rows
from fused_losses.bench.cases import Case
from fused_losses.bench.gpu.cases import providers_of
from fused_losses.bench.gpu.measure import compiles
from fused_losses.bench.gpu.supervisor import Supervisor
from fused_losses.bench.gpu.worker import Task
from fused_losses.bench.providers import COMPILE, EAGER, UNAVAILABLE
from fused_losses.bench.report import line
from fused_losses.bench.rows import Machine, Row


def tasks_of(
    cases: Iterable[Case], providers: Collection[str] | None, is_warming: bool = False
) -> list[Task]:
    """A task for each case and each of its providers, of those that are chosen; None chooses all.

    With `is_warming`, tasks only compile, and there are none for providers that do not.
    """
    return [
        Task(case, name, is_warming)
        for case in cases
        for name in providers_of(case)
        if (not providers or name in providers) and (not is_warming or compiles(name))
    ]


def run(supervisor: Supervisor, path: Path, machine: Machine, append: bool, console: Console) -> list[Row]:
    """Writes each row as it comes, prints a line for each case, and at the end what there was no time for."""
    measured: list[Row] = []
    with bench_rows.writer(path, machine, append) as write:
        for _, case_rows in groupby(_compared(supervisor.rows()), key=lambda row: row.case):
            found = []
            for row in case_rows:
                write([row])
                found.append(row)
            console.print(line(found), markup=False, highlight=False, soft_wrap=True)
            measured += found
    if supervisor.left_out:
        console.print(f"Out of time, not measured: {len(supervisor.left_out)}")
        for case, left in groupby(supervisor.left_out, key=lambda task: task.case):
            names = ", ".join(task.provider for task in left)
            console.print(f"  {case}: {names}", markup=False, highlight=False, soft_wrap=True)
    return measured


def print_unavailable(rows: Sequence[Row], console: Console) -> None:
    """Prints a line for each provider that could not run, however many cases it has."""
    for provider, status in dict.fromkeys((row.provider, row.status) for row in rows):
        if status.startswith(UNAVAILABLE):
            console.print(f"{provider}: {status}", markup=False, highlight=False)


def _compared(rows: Iterator[Row]) -> Iterator[Row]:
    """The rows with how many times faster they are than eager and compiled torch, whose rows come first."""
    baselines: dict[tuple[str, str, str], float] = {}
    for row in rows:
        if row.median_ms is not None:
            baselines[row.case, row.pass_, row.provider] = row.median_ms
            eager, compiled = (baselines.get((row.case, row.pass_, name)) for name in (EAGER, COMPILE))
            row = replace(
                row,
                vs_eager=None if eager is None else eager / row.median_ms,
                vs_compile=None if compiled is None else compiled / row.median_ms,
            )
        yield row


def warm(supervisor: Supervisor, console: Console) -> int:
    """Has the tasks compile what a run will need, and returns how many failed."""
    failed = []
    for row in supervisor.rows():
        failed.append(row)
        if not row.status.startswith(UNAVAILABLE):
            text = f"{row.case} {row.provider}: {row.status}"
            console.print(text, markup=False, highlight=False, soft_wrap=True)
    print_unavailable(failed, console)
    return len(failed)

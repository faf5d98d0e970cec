"""What a run says while it goes on: a bar on a terminal, lines elsewhere; and what Ctrl-C has kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fused_losses.bench.destination import Destination
from fused_losses.bench.report import console, line
from fused_losses.bench.rows import Row

# What a shell returns of a program that Ctrl-C ended: 128 and the number of the signal.
INTERRUPTED = 130


class Reporter:
    """Tells how far a run is.

    Args:
        cases: how many there are.
        stages: how many stages each has, which `stage` announces.
    """

    def __init__(self, cases: int, stages: int) -> None:
        self.cases, self.stages, self.done = cases, stages, 0
        self.started = time.monotonic()
        self.show: Callable[[str, int], None] = lambda text, count: None
        self.count = 0

    def stage(self, text: str) -> None:
        """Says what is about to happen; on a terminal alone, since it soon has."""
        self.show(text, self.count)
        self.count += 1

    def case(self, rows: list[Row]) -> None:
        """Says what was found about a case; on a terminal, the table at the end does."""
        self.done += 1
        self.count = self.done * self.stages
        if not console.is_terminal:
            elapsed = time.monotonic() - self.started
            text = f"[{self.done}/{self.cases}, {elapsed:.0f} s] {line(rows)}"
            console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def reporting(cases: int, stages: int) -> Iterator[Reporter]:
    """A reporter, with its bar where there is a terminal."""
    reporter = Reporter(cases, stages)
    if not console.is_terminal:
        yield reporter
        return
    columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
    # No automatic refresh: its thread would draw while the clock runs.
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        task = progress.add_task("", total=cases * stages)
        reporter.show = lambda text, count: progress.update(
            task, completed=count, description=text, refresh=True
        )
        yield reporter
        reporter.show("done", cases * stages)


@contextmanager
def kept_if_interrupted(destination: Destination) -> Iterator[None]:
    """Tells on Ctrl-C what the file has, and how to go on.

    Raises:
        typer.Exit: with the status of a program that Ctrl-C ended.
    """
    try:
        yield
    except KeyboardInterrupt:
        path = destination.path
        console.print(
            f"Interrupted. {path} has what was measured, and --csv {path} --resume goes on with it.",
            soft_wrap=True,
            markup=False,
        )
        raise typer.Exit(INTERRUPTED) from None

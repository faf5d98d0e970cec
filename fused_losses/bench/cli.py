"""The command line of the benchmark."""

import sys
from collections.abc import Callable, Collection
from datetime import date
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fused_losses.bench import memory, report, session
from fused_losses.bench.cases import DTYPES, LOSSES, Case, Pass, Size, select
from fused_losses.bench.providers import BASELINES, PROVIDERS

app = typer.Typer(no_args_is_help=True, add_completion=False)
# A quiet machine's load average: what is left of a shell and a few daemons.
QUIET_LOAD = 0.5

# Columns of a table that is not written to a terminal: all of it, nothing folded.
FILE_WIDTH = 160
console = Console(width=None if sys.stdout.isatty() else FILE_WIDTH)

# Enough for deciles that mean something; the large float32 cases then take about ten seconds each.
ROUNDS = 20


def _among(known: Collection[str]) -> Callable[[list[str]], list[str]]:
    """A check that every value of a repeated option is known."""

    def check(values: list[str]) -> list[str]:
        for value in values:
            if value not in known:
                raise typer.BadParameter(f"{value!r} is not one of {', '.join(known)}")
        return values

    return check


@app.callback()
def main() -> None:
    """Benchmarks of fused_losses against torch.nn.functional, eager and compiled."""


@app.command()
def run(
    size: Annotated[
        Size, typer.Option(help="8M elements, 64k elements, or one batch of 32 rows of 10.")
    ] = "large",
    losses: Annotated[list[str], typer.Option("--loss", callback=_among(LOSSES), help="Repeatable.")] = list(
        LOSSES
    ),
    dtypes: Annotated[list[str], typer.Option("--dtype", callback=_among(DTYPES), help="Repeatable.")] = [
        "float32",
        "bfloat16",
    ],
    providers: Annotated[
        list[str], typer.Option("--provider", callback=_among(PROVIDERS), help="Repeatable.")
    ] = list(PROVIDERS),
    pass_: Annotated[
        Pass,
        typer.Option("--pass", help="forward: without gradients; backward: alone; step: both."),
    ] = "step",
    rounds: Annotated[int, typer.Option(min=2, help="Samples per provider.")] = ROUNDS,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; torch's choice if not given.")] = None,
    csv: Annotated[
        Path | None, typer.Option(help="Where to write; build/bench/<date>.csv if not given.")
    ] = None,
    peak_memory: Annotated[
        bool | None,
        typer.Option(
            "--memory/--no-memory",
            help="Measure the peak memory of a step; by default for size large only.",
        ),
    ] = None,
) -> None:
    """Verifies every provider against float64, then times the providers in turn."""
    if threads is not None:
        torch.set_num_threads(threads)
    wanted = size == "large" if peak_memory is None else peak_memory
    if wanted and not memory.available():
        console.print(f"No peak memory: this system has no {memory.CLEAR_REFS}.")
    plan = session.Plan(
        providers=providers,
        pass_=pass_,
        rounds=rounds,
        threads=torch.get_num_threads(),
        memory=wanted and memory.available(),
    )
    machine = report.Machine.this()
    if machine.load is not None and machine.load > QUIET_LOAD:
        console.print(
            f"Load average {machine.load:.1f}: others are using this machine, and a thread that "
            "waits for them makes any loss look slow. Do not trust the times.",
            style="yellow",
        )
    rows = _measure(select(size, losses, dtypes), plan)

    path = csv or Path("build/bench") / f"{date.today().isoformat()}.csv"
    report.write_csv(path, machine, rows)
    console.print(report.results_table(rows, machine))
    console.print(f"Written to {path}")
    refused = [row for row in rows if row.status != session.OK]
    for row in refused:
        console.print(
            f"{row.loss} {row.shape} {row.dtype} {row.provider}: {row.status}",
            style="bold red",
            markup=False,
        )
    if any(row.provider not in BASELINES for row in refused):
        raise typer.Exit(1)


def _measure(cases: list[Case], plan: session.Plan) -> list[report.Row]:
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    rows: list[report.Row] = []
    # No automatic refresh: its thread would draw while the clock runs.
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        stages = len(cases) * plan.stages_per_case
        task = progress.add_task("", total=stages)
        started = 0

        def announce(stage: str) -> None:
            nonlocal started
            progress.update(task, completed=started, description=stage, refresh=True)
            started += 1

        for case in cases:
            rows += session.measure(case, plan, announce)
        progress.update(task, completed=stages, description="done", refresh=True)
    return rows

"""The command line of the benchmark."""

import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Annotated, cast

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fused_losses.bench import memory, report, rows, session
from fused_losses.bench.cases import DTYPES, SIZES, Case, Pass, Size, select
from fused_losses.bench.providers import BASELINES, PROVIDERS
from fused_losses.bench.timing import Pace
from fused_losses.registry import LOSSES

app = typer.Typer(no_args_is_help=True, add_completion=False)
# A quiet machine's load average: what is left of a shell and a few daemons.
QUIET_LOAD = 0.5

# Columns of a table that is not written to a terminal: all of it, nothing folded.
FILE_WIDTH = 160
console = Console(width=None if sys.stdout.isatty() else FILE_WIDTH)

# The least of which deciles mean something, and more than which add nothing.
LEAST_ROUNDS, MOST_ROUNDS = 7, 30

# Of timing, per case: all rounds for most, more than the least for all but the slowest eager losses.
SECONDS = 2.0

# No default, but what the others become under torch.compile and for float16.
NOT_IN_ALL = "recompute"


def _among(known: Collection[str]) -> Callable[[list[str] | None], list[str] | None]:
    """A check that every value of a repeated option is known."""

    def check(values: list[str] | None) -> list[str] | None:
        for value in values or []:
            if value not in known:
                raise typer.BadParameter(f"{value!r} is not one of {', '.join(known)}")
        return values

    return check


def _device(value: str) -> str:
    if value not in ("cpu", "cuda"):
        raise typer.BadParameter(f"{value!r} is neither cpu nor cuda")
    if value == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("torch finds no GPU here")
    return value


@app.callback()
def main() -> None:
    """Benchmarks of fused_losses against torch.nn.functional, eager and compiled."""


@app.command()
def run(
    all_: Annotated[
        bool,
        typer.Option("--all", help="Every size; every provider but recompute; the summary alone."),
    ] = False,
    sizes: Annotated[
        list[str] | None,
        typer.Option(
            "--size",
            callback=_among(SIZES),
            help="large: 8M elements; medium: 64k; small: 32 rows of 10. Repeatable; large if not given.",
        ),
    ] = None,
    losses: Annotated[list[str], typer.Option("--loss", callback=_among(LOSSES), help="Repeatable.")] = list(
        LOSSES
    ),
    dtypes: Annotated[list[str], typer.Option("--dtype", callback=_among(DTYPES), help="Repeatable.")] = [
        "float32",
        "bfloat16",
    ],
    providers: Annotated[
        list[str] | None, typer.Option("--provider", callback=_among(PROVIDERS), help="Repeatable.")
    ] = None,
    pass_: Annotated[
        Pass,
        typer.Option("--pass", help="forward: without gradients; backward: alone; step: both."),
    ] = "step",
    rounds: Annotated[
        int | None, typer.Option(min=2, help="Samples per provider; as time allows if not given.")
    ] = None,
    seconds: Annotated[
        float,
        typer.Option(help=f"Time for a case's rounds, of which there are {LEAST_ROUNDS} to {MOST_ROUNDS}."),
    ] = SECONDS,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; torch's choice if not given.")] = None,
    device: Annotated[str, typer.Option(callback=_device, help="cpu or cuda.")] = "cpu",
    csv: Annotated[
        Path | None, typer.Option(help="Where to write; build/bench/<date>.csv if not given.")
    ] = None,
    peak_memory: Annotated[
        bool | None,
        typer.Option(
            "--memory/--no-memory",
            help="Measure the peak memory of a step; by default for size large only, and not with --all.",
        ),
    ] = None,
) -> None:
    """Verifies every provider against float64, then times the providers in turn."""
    if threads is not None:
        torch.set_num_threads(threads)
    chosen = cast(list[Size], sizes or (SIZES if all_ else ["large"]))
    wanted = (chosen == ["large"] and not all_) if peak_memory is None else peak_memory
    if wanted and not memory.available():
        console.print(f"No peak memory: this system has no {memory.CLEAR_REFS}.")
    plan = session.Plan(
        providers=providers or [name for name in PROVIDERS if not all_ or name != NOT_IN_ALL],
        pass_=pass_,
        pace=Pace(LEAST_ROUNDS, MOST_ROUNDS, seconds) if rounds is None else Pace(rounds, rounds, seconds),
        threads=torch.get_num_threads(),
        memory=wanted and memory.available(),
    )
    machine = rows.Machine.this(device)
    if machine.load is not None and machine.load > QUIET_LOAD:
        console.print(
            f"Load average {machine.load:.1f}: others are using this machine, and a thread that "
            "waits for them makes any loss look slow. Do not trust the times.",
            style="yellow",
        )
    if device == "cpu":
        memory.limit_run()
    path = csv or Path("build/bench") / f"{date.today().isoformat()}.csv"
    console.print(f"Written to {path}, case by case")
    measured: list[rows.Row] = []
    with rows.writer(path, machine) as write:
        for of_case in _measure(select(chosen, losses, dtypes, device), plan):
            write(of_case)
            measured += of_case

    if not all_:
        console.print(report.results_table(measured, machine))
    report.print_summary(measured, console)
    if any(row.status != rows.OK and row.provider not in BASELINES for row in measured):
        raise typer.Exit(1)


@app.command()
def summary(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="What a run wrote.")],
) -> None:
    """Means beside their targets, and the cases that are slower than torch, from a CSV file."""
    try:
        _, measured = rows.read(file)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    report.print_summary(measured, console)


def _measure(cases: list[Case], plan: session.Plan) -> Iterator[list[rows.Row]]:
    """The rows of every case, as soon as they are there."""
    with _progress(len(cases) * plan.stages_per_case) as announce:
        for case in cases:
            yield session.measure(case, plan, announce)


@contextmanager
def _progress(stages: int) -> Iterator[session.Announce]:
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    # No automatic refresh: its thread would draw while the clock runs.
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        task = progress.add_task("", total=stages)
        started = 0

        def announce(stage: str) -> None:
            nonlocal started
            progress.update(task, completed=started, description=stage, refresh=True)
            started += 1

        yield announce
        progress.update(task, completed=stages, description="done", refresh=True)

"""The command line of the benchmark."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Annotated, cast

import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fused_losses.bench import compare, errors, memory, plots, prediction, report, rows, session
from fused_losses.bench.cases import DTYPES, SIZES, Case, Pass, Size, select
from fused_losses.bench.heads import HEADS
from fused_losses.bench.options import among, read, shape
from fused_losses.bench.providers import OF_HEADS, OF_LOSSES, OURS, PROVIDERS, UNAVAILABLE
from fused_losses.bench.report import console
from fused_losses.registry import LOSSES

app = typer.Typer(no_args_is_help=True, add_completion=False)
# A quiet machine's load average: what is left of a shell and a few daemons.
QUIET_LOAD = 0.5

# Of timing, per case: all rounds for most, more than the least for all but the slowest eager losses.
SECONDS = 2.0

# No default, but what the others become under torch.compile and for float16.
NOT_IN_ALL = "recompute"


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
            callback=among(SIZES),
            help="large: 8M elements; medium: 64k; small: 32 rows of 10. Repeatable; large if not given.",
        ),
    ] = None,
    shapes: Annotated[
        list[str] | None,
        typer.Option(
            "--shape",
            help="Of the first input, as 64x1024; of a linear layer, rows x features x classes. "
            "Repeatable; those of the size if not given.",
        ),
    ] = None,
    linear: Annotated[
        bool, typer.Option("--linear", help="Losses behind a linear layer, instead of losses alone.")
    ] = False,
    losses: Annotated[
        list[str] | None,
        typer.Option("--loss", callback=among([*LOSSES, *HEADS]), help="Repeatable; all if not given."),
    ] = None,
    dtypes: Annotated[list[str], typer.Option("--dtype", callback=among(DTYPES), help="Repeatable.")] = [
        "float32",
        "bfloat16",
    ],
    providers: Annotated[
        list[str] | None, typer.Option("--provider", callback=among(PROVIDERS), help="Repeatable.")
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
        typer.Option(
            help=f"Time for a case's rounds, of which there are {session.LEAST_ROUNDS} to "
            f"{session.MOST_ROUNDS}; behind a linear layer, at least {session.HEAD_ROUNDS}."
        ),
    ] = SECONDS,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; torch's choice if not given.")] = None,
    device: Annotated[str, typer.Option(callback=_device, help="cpu or cuda.")] = "cpu",
    csv: Annotated[
        Path | None, typer.Option(help="Where to write; build/bench/<date>.csv if not given.")
    ] = None,
    append: Annotated[
        bool, typer.Option("--append", help="Add to the file, which a run of this machine wrote.")
    ] = False,
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
    names = losses or list(HEADS if linear else LOSSES)
    cases = select(chosen, names, dtypes, device, [shape(text) for text in shapes or []])
    has_heads = any(name in HEADS for name in names)
    usual = OF_HEADS if has_heads else [name for name in OF_LOSSES if not all_ or name != NOT_IN_ALL]
    plan = session.Plan(
        providers=providers or usual,
        pass_=pass_,
        rounds=rounds,
        seconds=seconds,
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
        memory.limit_run(memory.HEADS_BYTES if has_heads else memory.RUN_BYTES)
    path = csv or Path("build/bench") / f"{date.today().isoformat()}.csv"
    append = append and path.exists()
    if append:
        unlike = compare.differences(read(path)[0], machine, (*compare.SAME_MACHINE, *compare.WARNED_OF))
        if unlike:
            raise typer.BadParameter(f"{path} is of another machine or version ({'; '.join(unlike)})")
    console.print(f"Written to {path}, case by case")
    measured: list[rows.Row] = []
    with rows.writer(path, machine, append) as write:
        for of_case in _measure(cases, plan):
            write(of_case)
            measured += of_case

    if not all_:
        console.print(report.results_table(measured, machine))
    report.print_summary(measured, console)
    refused = (row for row in measured if row.status != rows.OK and row.provider in OURS)
    if any(not row.status.startswith(UNAVAILABLE) for row in refused):
        raise typer.Exit(1)


@app.command()
def summary(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="What a run wrote.")],
) -> None:
    """Means beside their targets, and the cases that are slower than torch, from a CSV file."""
    _, measured = read(file)
    report.print_summary(measured, console)


app.command("compare")(compare.command)
app.command("plot")(plots.command)
app.command("memory")(prediction.command)
app.command("accuracy")(errors.command)


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

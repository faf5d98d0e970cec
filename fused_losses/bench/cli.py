"""The command line of the benchmark."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated, cast

import torch
import typer

from fused_losses.bench import (
    compare,
    errors,
    listing,
    memory,
    plots,
    prediction,
    profiling,
    report,
    rows,
    session,
)
from fused_losses.bench.cases import DTYPES, SETS, SIZES, Case, Pass, Size, cases_of_set
from fused_losses.bench.destination import Destination
from fused_losses.bench.gpu import cases as gpu_cases
from fused_losses.bench.gpu import run as gpu_run
from fused_losses.bench.gpu.supervisor import Supervisor
from fused_losses.bench.heads import HEADS
from fused_losses.bench.options import (
    CsvOption,
    DeviceOption,
    TinyOption,
    among,
    cases_of,
    part_of,
    read,
    shape,
)
from fused_losses.bench.progress import kept_if_interrupted, reporting
from fused_losses.bench.providers import (
    BY_DEVICE,
    HEAD_PROVIDERS,
    LOSS_PROVIDERS,
    OWN,
    PROVIDERS,
    UNAVAILABLE,
)
from fused_losses.bench.report import console
from fused_losses.bench.variants import VARIANTS
from fused_losses.registry import LOSSES

# Without markup, an error is a line of text and no box.
app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None)
# The most that the load average of a quiet machine is: a shell and a few daemons cause that much.
QUIET_LOAD = 0.5

# Seconds for the rounds of a case: enough for all rounds of most cases, and for more than the fewest rounds
# of all but the slowest eager losses.
SECONDS = 2.0

# The provider that `--all` leaves out: the others become this one under torch.compile and for float16 alone.
NOT_IN_ALL = "recompute"


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
    variants: Annotated[
        list[str] | None,
        typer.Option(
            "--variant",
            callback=among(["usual", *filter(None, VARIANTS)]),
            help="How losses are called: a name that `list` has, of those that can be called so. Repeatable; "
            "usual if not given.",
        ),
    ] = None,
    set_: Annotated[
        str | None,
        typer.Option(
            "--set",
            help="options: losses with options, other layouts and other upstream gradients, as programs call "
            "them; sizes, shapes and variants are the set's.",
        ),
    ] = None,
    pass_: Annotated[
        Pass,
        typer.Option("--pass", help="forward: without gradients; backward: alone; step: both."),
    ] = "step",
    rounds: Annotated[
        int | None, typer.Option(min=2, help="Samples per provider; as time allows if not given.")
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            help=f"Time for a case's rounds, of which there are {session.LEAST_ROUNDS} to "
            f"{session.MOST_ROUNDS}; behind a linear layer, at least {session.HEAD_ROUNDS}. {SECONDS:g} if "
            "not given. On a GPU: for the whole run; without a limit if not given."
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads; torch's choice if not given.")] = None,
    device: DeviceOption = "cpu",
    tiny: TinyOption = False,
    csv: CsvOption = None,
    append: Annotated[
        bool, typer.Option("--append", help="Add to the file, which a run of this machine wrote.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the file: leave out the cases that it has.")
    ] = False,
    peak_memory: Annotated[
        bool | None,
        typer.Option(
            "--memory/--no-memory",
            help="Measure the peak memory of a step; by default for size large only, and not with --all.",
        ),
    ] = None,
) -> None:
    """Verifies every provider against float64, then times the providers in turn.

    On a GPU, the cases are a list of its own, the most important first, or those of it that are chosen. Each
    provider is timed by itself, in a process that is replaced by another if it dies or hangs.
    """
    dimensions = [shape(text) for text in shapes or []]
    called = ["" if name == "usual" else name for name in variants or ["usual"]]
    machine = rows.Machine.this(device)
    destination = Destination.of(csv, machine, append, resume)
    if device == "cuda" or tiny:
        cpu_only = {"--all": all_, "--size": sizes, "--pass": pass_ != "step", "--rounds": rounds}
        cpu_only |= {"--set": set_ is not None, "--threads": threads, "--memory": peak_memory is not None}
        for name, value in cpu_only.items():
            if value:
                raise typer.BadParameter(f"{name} is of runs on a CPU")
        known = losses or (HEADS if linear else [*LOSSES, *HEADS])
        chosen_cases = [
            case
            for case in gpu_cases.cases(device, tiny)
            if case.loss in known and case.dtype in dtypes and (not variants or case.variant in called)
        ]
        if dimensions:
            chosen_cases = cases_of(["large"], [*known], dtypes, device, dimensions, called)
        _run_on_gpu(chosen_cases, providers, seconds, machine, destination)
        return
    among(BY_DEVICE)(providers)
    if threads is not None:
        torch.set_num_threads(threads)
        machine = replace(machine, threads=threads)
    chosen = cast(list[Size], sizes or (SIZES if all_ else ["large"]))
    wanted = (chosen == ["large"] and not all_) if peak_memory is None else peak_memory
    if wanted and not memory.available():
        console.print(f"No peak memory: this system has no {memory.CLEAR_REFS}.")
    names = losses or list(HEADS if linear else LOSSES)
    cases = cases_of(chosen, names, dtypes, device, dimensions, called)
    if set_ is not None:
        if sizes or shapes or variants or linear or all_:
            raise typer.BadParameter("--set has sizes, shapes and variants of its own")
        among(SETS)([set_])
        cases = cases_of_set(set_, names, dtypes)
    has_heads = any(name in HEADS for name in names)
    usual = [name for name in LOSS_PROVIDERS if not all_ or name != NOT_IN_ALL]
    if has_heads:
        usual = HEAD_PROVIDERS
    plan = session.Plan(
        providers=providers or usual,
        pass_=pass_,
        rounds=rounds,
        seconds=SECONDS if seconds is None else seconds,
        threads=torch.get_num_threads(),
        memory=wanted and memory.available(),
    )
    if machine.load is not None and machine.load > QUIET_LOAD:
        console.print(
            f"Load average {machine.load:.1f}: others are using this machine, and a thread that "
            "waits for them makes any loss look slow. Do not trust the times.",
            style="yellow",
        )
    left = [case for case in cases if destination.lacks(case, pass_, plan.providers)]
    _announce(destination, len(left), len(cases))
    measured = list(destination.earlier) if resume else []
    with (
        kept_if_interrupted(destination),
        rows.writer(destination.path, machine, destination.appends) as write,
        reporting(len(left), plan.stages_per_case) as reporter,
    ):
        for case in left:
            case_rows = session.measure(case, plan, reporter.stage)
            write(case_rows)
            reporter.case(case_rows)
            measured += case_rows

    if not all_ and measured:
        report.print_results(measured, machine, console)
    report.print_summary(measured, console)
    _fail_if_refused(measured)


def _announce(destination: Destination, left: int, cases: int) -> None:
    done = f"; {cases - left} of {cases} cases are there already" if left < cases else ""
    console.print(f"Written to {destination.path}, case by case{done}", soft_wrap=True, highlight=False)


def _run_on_gpu(
    cases: list[Case],
    providers: list[str] | None,
    seconds: float | None,
    machine: rows.Machine,
    destination: Destination,
) -> None:
    every = gpu_run.tasks_of(cases, providers)
    if not every:
        raise typer.BadParameter("no case of a run on a GPU has such a loss, dtype, variant and provider")
    tasks = [task for task in every if destination.lacks(task.case, "step", [task.provider])]
    _announce(destination, len(tasks), len(every))
    supervisor = Supervisor(tasks, seconds=math.inf if seconds is None else seconds)
    try:
        with kept_if_interrupted(destination):
            measured = gpu_run.run(supervisor, destination.path, machine, destination.appends, console)
    except RuntimeError as error:
        console.print(f"Stopped: {error}", style="bold red", markup=False)
        raise typer.Exit(1) from error
    gpu_run.print_unavailable(measured, console)
    report.print_summary([row for row in measured if not row.status.startswith(UNAVAILABLE)], console)
    _fail_if_refused(measured)


def _fail_if_refused(measured: list[rows.Row]) -> None:
    """Exits with status 1 if a provider of this package is not accurate or raises."""
    refused = (row for row in measured if row.status != rows.OK and row.provider in OWN)
    if any(not row.status.startswith(UNAVAILABLE) for row in refused):
        raise typer.Exit(1)


@app.command()
def warm(
    device: DeviceOption = "cuda",
    part: Annotated[
        str,
        typer.Option(help="K/N: every Nth case from the Kth (from 0) on, for N processes at once."),
    ] = "0/1",
    tiny: TinyOption = False,
) -> None:
    """Fills the caches on disk of torch.compile and Triton with what a run on a GPU needs compiled."""
    first, step = part_of(part)
    tasks = gpu_run.tasks_of(gpu_cases.cases(device, tiny)[first::step], None, is_warming=True)
    failed = gpu_run.warm(Supervisor(tasks), console)
    console.print(f"Compiled {len(tasks) - failed} of {len(tasks)}")


@app.command()
def summary(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="What a run wrote.")],
) -> None:
    """Means beside their targets, and the cases that are slower than torch, from a CSV file."""
    _, measured = read(file)
    report.print_summary(measured, console)


app.command("list")(listing.command)
app.command("step")(profiling.command)
app.command("compare")(compare.command)
app.command("plot")(plots.command)
app.command("memory")(prediction.command)
app.command("accuracy")(errors.command)

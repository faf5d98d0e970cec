"""``accuracy``: how far every provider is from float64, on kinds of inputs that try it differently."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich import box
from rich.table import Table
from torch import Generator, Tensor

from fused_losses.bench.accuracy import Result, exact, in_kernels_dtype, run
from fused_losses.bench.cases import DTYPES, Case, select
from fused_losses.bench.destination import new_path
from fused_losses.bench.heads import HEADS
from fused_losses.bench.options import among
from fused_losses.bench.providers import (
    BY_DEVICE,
    COMPILE,
    EAGER,
    HEAD_PROVIDERS,
    LOSS_PROVIDERS,
    PROVIDERS,
    UNAVAILABLE,
    LossFn,
    Unavailable,
    serving,
)
from fused_losses.bench.report import console
from fused_losses.bench.rows import OK
from fused_losses.bench.timing import one_line
from fused_losses.registry import LOSSES
from fused_losses.samples import Inputs

SAMPLES = "samples"

# A logit so far above all others, which are 0, that its class has all of the probability in float32.
CERTAIN = 50.0
# How far the logits of a model that is sure of itself are above the others: a factor of 160,000.
CONFIDENT = 12.0
# The largest absolute value of a logit: float16 has every whole number up to 2048. A row spans twice as much.
HUGE = 2000.0


def _confident(logits: Tensor, classes: Tensor, generator: Generator) -> Tensor:
    bonus = torch.zeros_like(logits).scatter_(1, classes.unsqueeze(1), CONFIDENT)
    return logits + bonus


def _uniform(logits: Tensor, classes: Tensor, generator: Generator) -> Tensor:
    return torch.full_like(logits, 0.5)


def _one_hot(logits: Tensor, classes: Tensor, generator: Generator) -> Tensor:
    return torch.zeros_like(logits).scatter_(1, classes.unsqueeze(1), CERTAIN)


def _masked(logits: Tensor, classes: Tensor, generator: Generator) -> Tensor:
    """Half of the classes are ruled out, never the target."""
    ruled_out = torch.rand(logits.shape, generator=generator) < 0.5
    ruled_out.scatter_(1, classes.unsqueeze(1), False)
    return logits.masked_fill(ruled_out, -torch.inf)


def _huge(logits: Tensor, classes: Tensor, generator: Generator) -> Tensor:
    return (torch.rand(logits.shape, generator=generator) * 2 - 1) * HUGE


def _tied(logits: Tensor, classes: Tensor, generator: Generator) -> Tensor:
    """Each logit is one of three numbers: many classes share a row's maximum."""
    return torch.randint(3, logits.shape, generator=generator).to(logits.dtype)


Kind = Callable[[Tensor, Tensor, Generator], Tensor]
LOGIT_KINDS: dict[str, Kind] = {
    "confident": _confident,
    "uniform": _uniform,
    "one-hot": _one_hot,
    "masked": _masked,
    "huge": _huge,
    "tied": _tied,
}
"""Functions that make other logits (N, C, d1, ...) of logits and labels (N, d1, ...), all float32."""


@dataclass(frozen=True)
class Row:
    """Errors of one provider, in eps of the dtype, relative to the largest exact element.

    ``max_grad`` and ``rms_grad`` are the worst of all gradients. A loss has one element, so one error. None
    is an empty field.
    """

    loss: str
    shape: str
    dtype: str
    kind: str
    provider: str
    status: str
    loss_error: float | None = None
    max_grad: float | None = None
    rms_grad: float | None = None


def kinds_of(case: Case) -> list[str]:
    """Kinds of inputs that make sense for a loss: logits and classes may be anything, others have samples."""
    return [SAMPLES, *LOGIT_KINDS] if case.loss == "cross_entropy" else [SAMPLES]


def _inputs(case: Case, kind: str) -> Inputs:
    inputs = case.inputs(seed=0)
    if kind == SAMPLES:
        return inputs
    logits, classes = inputs
    generator = Generator().manual_seed(1)
    made = LOGIT_KINDS[kind](logits.detach().float().cpu(), classes.cpu(), generator)
    return made.to(logits.device, logits.dtype).requires_grad_(), classes


def _errors(result: Tensor, reference: Tensor, eps: float) -> tuple[float, float]:
    """The largest and the root mean square error, in eps of the largest element of the reference."""
    difference = result.double() - reference
    unit = eps * reference.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    return (difference.abs().max() / unit).item(), (difference.square().mean().sqrt() / unit).item()


def _make(case: Case, name: str) -> LossFn | str:
    """A provider's function for a case, or the status that says why there is none."""
    try:
        return PROVIDERS[name].make(case)
    except Unavailable as reason:
        return UNAVAILABLE + str(reason)


def _measured(row: Row, function: LossFn, inputs: Inputs, reference: Result) -> Row:
    """The row with the errors of a step, or with the status of what it raised."""
    try:
        # Where torch has no kernel for a dtype, its users compute in float32 and round.
        call = in_kernels_dtype if row.provider in (EAGER, COMPILE) else run
        result = call(function, inputs, "step")
    except Exception as error:
        return replace(row, status=one_line(error))
    eps = torch.finfo(DTYPES[row.dtype]).eps
    loss_error, _ = _errors(result.loss, reference.loss, eps)
    pairs = [_errors(grad, exact, eps) for grad, exact in zip(result.grads, reference.grads, strict=True)]
    # Python's max would lose a NaN.
    largest, rms = torch.tensor(pairs, dtype=torch.float64).amax(0).tolist()
    return replace(row, loss_error=loss_error, max_grad=largest, rms_grad=rms)


def measure(cases: list[Case], providers: list[str]) -> Iterator[Row]:
    """The errors of every provider on every kind of inputs of every case."""
    for case in cases:
        # Functions are made once for all kinds of inputs, so that each is compiled once.
        functions = {name: _make(case, name) for name in serving(case, providers)}
        for kind in kinds_of(case):
            inputs = _inputs(case, kind)
            reference = exact(case, inputs, "step")
            for name, function in functions.items():
                row = Row(case.loss, case.shape_text, case.dtype, kind, name, OK)
                # All providers may have the same inputs, since `run` copies what may be overwritten.
                if isinstance(function, str):
                    yield replace(row, status=function)
                else:
                    yield _measured(row, function, inputs, reference)


def command(
    losses: Annotated[
        list[str], typer.Option("--loss", callback=among([*LOSSES, *HEADS]), help="Repeatable.")
    ] = [*LOSSES, *HEADS],
    dtypes: Annotated[list[str], typer.Option("--dtype", callback=among(DTYPES), help="Repeatable.")] = list(
        DTYPES
    ),
    providers: Annotated[
        list[str] | None,
        typer.Option("--provider", callback=among(BY_DEVICE), help="Repeatable; all but peers if not given."),
    ] = None,
    size: Annotated[str, typer.Option(help="large, medium or small, as in `run`.")] = "medium",
    csv_: Annotated[
        Path | None,
        typer.Option("--csv", help="Where to write; build/bench/accuracy-<time>.csv if not given."),
    ] = None,
) -> None:
    """Largest and root mean square error against float64, in eps of the largest element."""
    if size not in ("large", "medium", "small"):
        raise typer.BadParameter(f"{size!r} is not one of large, medium, small")
    chosen = providers or list(dict.fromkeys([*LOSS_PROVIDERS, *HEAD_PROVIDERS]))
    path = csv_ or new_path("accuracy-")
    if path.exists():
        raise typer.BadParameter(f"{path} is there")
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    with path.open("x", newline="") as file:
        output = csv.writer(file)
        output.writerow(field.name for field in fields(Row))
        for row in measure(select([size], losses, dtypes), chosen):  # type: ignore[list-item]
            output.writerow(f"{v:.4g}" if isinstance(v, float) else v for v in asdict(row).values())
            file.flush()
            rows.append(row)
    console.print(_table(rows))
    console.print(f"Written to {path}")


def _table(rows: list[Row]) -> Table:
    table = Table(
        title="Error against float64",
        caption="In eps of the dtype, relative to the largest element. A dash: the CSV's status says why.",
        box=box.SIMPLE,
        collapse_padding=True,
    )
    for heading in ("case", "inputs", "provider"):
        table.add_column(heading, overflow="fold")
    for heading in ("loss", "gradient, max", "gradient, RMS"):
        table.add_column(heading, justify="right", no_wrap=True)
    previous: tuple[str, str] = ("", "")
    for row in rows:
        case = (f"{row.loss} {row.shape} {row.dtype}", row.kind)
        if case != previous:
            table.add_section()
        names = ("", "") if case == previous else case
        numbers = (row.loss_error, row.max_grad, row.rms_grad)
        table.add_row(*names, row.provider, *("-" if v is None else f"{v:.3g}" for v in numbers))
        previous = case
    return table

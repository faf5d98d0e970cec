"""``memory``: what a step of the loss layer takes at its peak, predicted by `model`, and measured."""

from __future__ import annotations

from typing import Annotated

import torch
import typer
from rich import box
from rich.table import Table

from fused_losses.bench import memory, model
from fused_losses.bench.cases import DTYPES, Case
from fused_losses.bench.model import Layer
from fused_losses.bench.options import among
from fused_losses.bench.providers import PROVIDERS, Unavailable
from fused_losses.bench.report import console
from fused_losses.bench.rows import MIB

LOSS = "linear_cross_entropy"

# Batch, sequence, vocabulary and hidden size of a step of Llama 3 with 8B parameters, whose memory is
# predicted.
REAL = (8, 8192, 128256, 4096)

# The same of a step that any machine has room for, to be measured.
MEASURABLE = (4, 512, 32768, 512)

# The larger of these two is what a measurement may be off by: pages of 2 MiB, a thread's scratch memory and
# what an allocator keeps are not in the model.
RELATIVE, ABSOLUTE = 0.1, 16 * MIB


def is_close(predicted: int, measured: int) -> bool:
    """Whether a measurement confirms a prediction."""
    return abs(measured - predicted) <= max(RELATIVE * predicted, ABSOLUTE)


def _usual(index: int) -> str:
    return f"{REAL[index]} if not given; {MEASURABLE[index]} with --measure."


def command(
    batch: Annotated[int | None, typer.Option(min=1, help=_usual(0))] = None,
    sequence: Annotated[int | None, typer.Option(min=1, help=_usual(1))] = None,
    vocabulary: Annotated[int | None, typer.Option(min=1, help=_usual(2))] = None,
    hidden: Annotated[int | None, typer.Option(min=1, help=_usual(3))] = None,
    dtypes: Annotated[list[str], typer.Option("--dtype", callback=among(DTYPES), help="Repeatable.")] = [
        "float32",
        "bfloat16",
    ],
    providers: Annotated[
        list[str], typer.Option("--provider", callback=among(model.MODELS), help="Repeatable.")
    ] = list(model.MODELS),
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Measure each on the CPU, in a process of its own; exit with status 1 if a prediction is "
            f"off by more than {RELATIVE:.0%} and {ABSOLUTE // MIB} MiB.",
        ),
    ] = False,
) -> None:
    """Peak memory of a training step of the loss layer: hidden states, head, cross-entropy, gradients."""
    usual = MEASURABLE if measure else REAL
    sizes = [given or size for given, size in zip((batch, sequence, vocabulary, hidden), usual, strict=True)]
    batch_, sequence_, classes, features = sizes
    sizes_text = f"{batch_} x {sequence_} positions, {classes} classes, {features} features"
    console.print(f"{sizes_text}: MiB beyond hidden states, weight and labels")
    layers = [Layer(batch_ * sequence_, features, classes, dtype) for dtype in dtypes]
    if not measure:
        for layer in layers:
            console.print(_terms_table(layer, providers))
        return
    if not memory.available():
        raise typer.BadParameter(f"this system has no {memory.CLEAR_REFS}", param_hint="--measure")
    confirmed = [_confirm(layer, providers) for layer in layers]
    if not all(confirmed):
        raise typer.Exit(1)


def _terms_table(layer: Layer, providers: list[str]) -> Table:
    table = Table(title=layer.dtype, box=box.SIMPLE, collapse_padding=True)
    for heading in ("provider", "at the peak"):
        table.add_column(heading)
    table.add_column("MiB", justify="right")
    table.add_column("reason")
    for provider in providers:
        phase, terms = model.peak(provider, layer)
        table.add_section()
        table.add_row(f"[bold]{provider}[/]", phase, f"[bold]{model.total(terms) / MIB:,.1f}[/]", "in all")
        for term in terms:
            table.add_row("", term.name, f"{term.bytes / MIB:,.1f}", term.reason)
    return table


def _confirm(layer: Layer, providers: list[str]) -> bool:
    """Prints predictions beside measurements, and returns whether all of them agree."""
    table = Table(title=layer.dtype, box=box.SIMPLE, collapse_padding=True)
    table.add_column("provider")
    for heading in ("predicted MiB", "measured MiB", "ratio"):
        table.add_column(heading, justify="right")
    table.add_column("")
    case = Case(LOSS, "large", (layer.rows, layer.features, layer.classes), layer.dtype)
    agreed = True
    for provider in providers:
        predicted = model.total(model.peak(provider, layer)[1])
        try:
            PROVIDERS[provider].make(case)
        except Unavailable as reason:
            table.add_row(provider, f"{predicted / MIB:,.1f}", "-", "-", str(reason))
            continue
        measured = memory.peak_bytes(case, provider, torch.get_num_threads())
        if measured is None:
            table.add_row(provider, f"{predicted / MIB:,.1f}", "-", "-", "[bold red]failed[/]")
            agreed = False
            continue
        close = is_close(predicted, measured)
        agreed = agreed and close
        numbers = (f"{predicted / MIB:,.1f}", f"{measured / MIB:,.1f}", f"{measured / predicted:.3f}")
        table.add_row(provider, *numbers, "[green]confirmed[/]" if close else "[bold red]off[/]")
    console.print(table)
    return agreed

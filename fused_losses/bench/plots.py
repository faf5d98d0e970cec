"""``plot``: pictures of a run, drawn by `figures`, which alone needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fused_losses.bench.heads import HEADS
from fused_losses.bench.options import read
from fused_losses.bench.report import console
from fused_losses.bench.rows import Row, steps

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _write(figure: Figure | None, path: Path) -> None:
    if figure is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the date and matplotlib's version, the same CSV makes the same file.
    figure.savefig(path, metadata={"Software": None})
    console.print(f"Written to {path}")


def command(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="What a run wrote.")],
    out: Annotated[Path, typer.Option("--out", help="A directory, made if it is not there.")],
    memory: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="What a run with --memory wrote; NAME-memory.csv beside NAME.csv if it is there.",
        ),
    ] = None,
    size: Annotated[str, typer.Option(help="large, medium or small.")] = "large",
) -> None:
    """PNG pictures of speed, bandwidth and peak memory, per dtype, from a CSV file."""
    from fused_losses.bench import figures

    machine, everything = read(file)
    rows = steps([row for row in everything if row.size in (size, "")])
    if not rows:
        raise typer.BadParameter(f"{file} has no inputs of size {size}")
    for family, family_rows in _families(rows):
        for dtype in dict.fromkeys(row.dtype for row in family_rows):
            name = f"{file.stem}{family}-{{}}-{dtype}.png"
            _write(figures.speed(machine, family_rows, dtype), out / name.format("speed"))
            _write(figures.bandwidth(machine, family_rows, dtype), out / name.format("bandwidth"))
    beside = file.with_name(f"{file.stem}-memory.csv")
    weighed = memory or (beside if beside.exists() else file)
    machine, measured = read(weighed)
    for family, family_rows in _families(measured):
        for dtype in dict.fromkeys(row.dtype for row in family_rows):
            path = out / f"{file.stem}{family}-memory-{dtype}.png"
            _write(figures.peak_memory(machine, steps(family_rows), dtype), path)


def _families(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """The rows of losses alone and those of losses behind a linear layer, each with a part of a file's name.

    Their times have nothing in common.
    """
    alone = [row for row in rows if row.loss not in HEADS]
    behind = [row for row in rows if row.loss in HEADS]
    return [(suffix, found) for suffix, found in (("", alone), ("-linear", behind)) if found]

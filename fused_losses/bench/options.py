"""What several commands' options have in common."""

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from fused_losses.bench import rows
from fused_losses.bench.cases import Case, Size, select
from fused_losses.samples import Shape

UsageError: type[Any] = typer.BadParameter.__bases__[0]
"""What typer raises of wrong options; of its classes, typer exports those of single options alone."""


def among(known: Collection[str]) -> Callable[[list[str] | None], list[str] | None]:
    """A check that every value of a repeated option is known."""

    def check(values: list[str] | None) -> list[str] | None:
        for value in values or []:
            if value not in known:
                raise typer.BadParameter(f"{value!r} is not one of {', '.join(known)}")
        return values

    return check


def shape(text: str) -> Shape:
    """The shape that a text such as 64x1024 names."""
    sizes = text.split("x")
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise typer.BadParameter(f"{text!r} is not a shape like 64x1024")
    return tuple(map(int, sizes))


def part_of(text: str) -> tuple[int, int]:
    """The index and the number of parts that a text such as 0/4, the first of four, names."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise typer.BadParameter(f"{text!r} is not a part like 0/4")
    return int(index), int(count)


def read(file: Path) -> tuple[rows.Machine, list[rows.Row]]:
    """The machine and the rows of a file that a run wrote.

    Raises:
        typer.BadParameter: no run wrote it.
    """
    try:
        return rows.read(file)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


def _device(value: str) -> str:
    if value not in ("cpu", "cuda"):
        raise typer.BadParameter(f"{value!r} is neither cpu nor cuda")
    if value == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("torch finds no GPU here")
    return value


DeviceOption = Annotated[str, typer.Option("--device", callback=_device, help="cpu or cuda.")]
TinyOption = Annotated[
    bool,
    typer.Option(
        "--tiny",
        help="The run of a GPU with small inputs; with --device cpu, a rehearsal of it by the host's clock.",
    ),
]
CsvOption = Annotated[
    Path | None,
    typer.Option(
        help="Where to write; build/bench/<time>.csv if not given. The same goes to a .json file beside it."
    ),
]


def cases_of(
    sizes: Sequence[Size],
    losses: Sequence[str],
    dtypes: Sequence[str],
    device: str,
    shapes: Sequence[Shape],
    variants: Sequence[str],
) -> list[Case]:
    """The cases that options choose.

    Raises:
        typer.BadParameter: a shape that a loss does not take; no case at all.
    """
    try:
        cases = select(sizes, losses, dtypes, device, shapes, variants)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    if not cases:
        raise typer.BadParameter(f"no such loss has the variant {', '.join(variants)}; see `list`")
    return cases

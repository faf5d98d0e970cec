"""What several commands' options have in common."""

from collections.abc import Callable, Collection
from pathlib import Path

import typer

from fused_losses.bench import rows
from fused_losses.samples import Shape


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

"""What several commands' options have in common."""

from collections.abc import Callable, Collection
from pathlib import Path

import typer

from fused_losses.bench import rows


def among(known: Collection[str]) -> Callable[[list[str] | None], list[str] | None]:
    """A check that every value of a repeated option is known."""

    def check(values: list[str] | None) -> list[str] | None:
        for value in values or []:
            if value not in known:
                raise typer.BadParameter(f"{value!r} is not one of {', '.join(known)}")
        return values

    return check


def read(file: Path) -> tuple[rows.Machine, list[rows.Row]]:
    """What a run wrote, or a message that it did not."""
    try:
        return rows.read(file)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error

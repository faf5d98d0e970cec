"""The file that a run writes: a new one, one that it adds to, or one whose run it goes on with."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import typer

from fused_losses.bench import compare
from fused_losses.bench.cases import Case, Pass
from fused_losses.bench.options import read
from fused_losses.bench.providers import serving
from fused_losses.bench.rows import Machine, Row


def new_path(prefix: str = "") -> Path:
    """A file in build/bench named after the time, to the second, so that no two runs have the same."""
    return Path("build/bench") / f"{prefix}{datetime.now().strftime('%Y-%m-%dT%H%M%S')}.csv"


@dataclass(frozen=True)
class Destination:
    """Where a run's rows go, and what is there already.

    Args:
        path: the CSV file.
        earlier: the rows that the file has; nothing for a new one.
        resumes: whether the cases of these rows are left out.
    """

    path: Path
    earlier: list[Row]
    resumes: bool

    @classmethod
    def of(cls, csv: Path | None, machine: Machine, append: bool, resume: bool) -> Destination:
        """What the options ask for.

        Raises:
            typer.BadParameter: a file that is there and is neither to be added to nor to be resumed, or one
                that another machine or version wrote; no file to resume.
        """
        path = csv or new_path()
        if resume and csv is None:
            raise typer.BadParameter("--resume needs --csv FILE, the file to go on with")
        if not path.exists():
            return cls(path, [], False)
        if not (append or resume):
            raise typer.BadParameter(f"{path} is there: --resume goes on with it, --append adds to it")
        before, earlier = read(path)
        unlike = compare.differences(before, machine, (*compare.SAME_MACHINE, *compare.SAME_VERSIONS))
        if unlike:
            raise typer.BadParameter(f"{path} is of another machine or version ({'; '.join(unlike)})")
        return cls(path, earlier, resume)

    @property
    def appends(self) -> bool:
        """Whether the file has rows already."""
        return bool(self.earlier)

    def lacks(self, case: Case, pass_: Pass, providers: Collection[str]) -> bool:
        """Whether a case is to be measured: in a resumed file, unless it has a row of each provider."""
        if not self.resumes:
            return True
        found = {row.provider for row in self.earlier if row.pass_ == pass_ and row.case == str(case)}
        return not found.issuperset(serving(case, list(providers)))

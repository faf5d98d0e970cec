"""Every kernel of the CUDA library: registers, local memory, the size of its code.

python benchmarks/cuda_report.py --check
"""

from __future__ import annotations

import csv
import sys
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from cuda_library import LIBRARY, demangled, extract, short
from disassembly import Kernel, cubin
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results" / "cuda-report.csv"

ACCEPTED = Path(__file__).parent / "cuda-local-memory.csv"
"""Bytes of local memory that kernels are known to have: they may not become more."""

PROCESSES = 2
"""How many read at a time: the project's machines have two cores."""


@dataclass
class Row:
    """A kernel for an architecture."""

    architecture: str
    kernel: str
    registers: int
    local_bytes: int
    """Of each thread."""
    spills: int
    """How many instructions access local memory."""
    shared_bytes: int
    """Declared by the kernel itself."""
    loads: str
    stores: str
    instructions: int
    exponentials: int

    def is_faulty(self, accepted: dict[str, int]) -> bool:
        """Whether it accesses more local memory than is accepted of a kernel of this name."""
        return max(self.local_bytes, int(self.spills > 0)) > accepted.get(self.kernel, 0)


def rows() -> list[Row]:
    """All kernels of the library."""
    with TemporaryDirectory() as folder, ProcessPoolExecutor(PROCESSES) as pool:
        found = [row for some in pool.map(_rows_of, extract(Path(folder))) for row in some]
    return sorted(found, key=lambda row: (row.kernel, row.architecture))


def _rows_of(path: Path) -> list[Row]:
    """The kernels of a file, whose name ends as in "library.3.sm_90.cubin"."""
    kernels = cubin(path)
    names = map(short, demangled(kernels))
    return [
        _row(path.suffixes[-2][1:], name, kernel)
        for name, kernel in zip(names, kernels.values(), strict=True)
    ]


def _row(architecture: str, name: str, kernel: Kernel) -> Row:
    instructions = kernel.code.instructions
    return Row(
        architecture,
        name,
        kernel.registers,
        kernel.local_bytes,
        sum(each.is_local for each in instructions),
        kernel.shared_bytes,
        *(_widths(kernel, kind) for kind in ("load", "store")),
        kernel.size,
        sum(each.is_exponential for each in instructions),
    )


def _widths(kernel: Kernel, kind: str) -> str:
    accesses = (each.access for each in kernel.code.instructions)
    found = Counter(access[1] for access in accesses if access and access[0] == kind)
    return " ".join(f"{count}x{bits}" for bits, count in sorted(found.items(), reverse=True))


def accepted() -> dict[str, int]:
    """The bytes of local memory that are accepted, by kernel."""
    with ACCEPTED.open(newline="") as file:
        return {row["kernel"]: int(row["local_bytes"]) for row in csv.DictReader(file)}


def accept(rows: list[Row]) -> None:
    """Accepts the local memory that there is."""
    with ACCEPTED.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("kernel", "local_bytes"))
        writer.writerows((row.kernel, row.local_bytes) for row in rows if row.is_faulty({}))


def table_of(rows: list[Row]) -> Table:
    """All that is known."""
    table = Table(*(field.name.replace("_", " ") for field in fields(Row)), box=None)
    known = accepted()
    for row in rows:
        style = "red" if row.is_faulty(known) else "yellow" if row.is_faulty({}) else None
        table.add_row(*map(str, astuple(row)), style=style)
    return table


def main(
    check: Annotated[bool, typer.Option(help="Exit with 1 if a kernel accesses local memory.")] = False,
    renew: Annotated[
        bool, typer.Option("--accept", help="Accept the local memory that is seen today.")
    ] = False,
) -> None:
    """All kernels of the CUDA library; writes benchmarks/results/cuda-report.csv."""
    console = Console(width=None if sys.stdout.isatty() else 240, highlight=False)
    if not LIBRARY.exists():
        console.print("There is no CUDA library: nothing is told of its kernels.")
        return
    found = rows()
    if renew:
        accept(found)
    console.print(table_of(found))
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in found)
    for architecture in sorted({row.architecture for row in found}):
        own = [row for row in found if row.architecture == architecture]
        console.print(
            f"{architecture}: {len(own)} kernels, {sum(row.instructions for row in own)} instructions; "
            f"{sum(bool(row.local_bytes) for row in own)} access local memory; "
            f"at most {max(row.registers for row in own)} registers"
        )
    if check and any(row.is_faulty(accepted()) for row in found):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)

"""What the kernels of both backends execute on GPUs for each element, read off their machine code.

python benchmarks/gpu_report.py --check

No GPU is needed. Without nvcc, there is no CUDA library, and Triton's half alone is told.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import cuda_library
import gpu_limits
import typer
from arguments import constants, with_arguments
from cells import CELLS, Cell, cuda_launches, triton_launches
from disassembly import Kernel, compiled_by_triton
from element_count import Count, count
from machine_code import Code
from rich.console import Console
from rich.table import Table
from triton.backends.compiler import GPUTarget

from fused_losses.registry import LOSSES

RESULTS = Path(__file__).parent / "results" / "gpu-report.csv"

JUDGED = "sm_90"
"""The architecture that limits are about."""

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    JUDGED: GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}

PROCESSES = 2
"""How many compile at a time: the project's machines have two cores."""

WIDE = 128
"""Bits of the widest accesses to memory that all GPUs have; Blackwell has wider ones, too."""


@dataclass
class Row:
    """What one backend executes in one direction of a cell."""

    loss: str
    dtype: str
    shape: str
    special: str
    direction: str
    backend: str
    target: str
    kernel: str
    launches: int
    threads: int
    """Of a block."""
    registers: int
    local_bytes: int
    """The most of all launches."""
    shared_bytes: int
    loads: str
    stores: str
    instructions: float
    """For each element, as are the next two."""
    exponentials: float
    special_functions: float
    is_sure: bool
    """Whether no more than that may be executed in most turns; see `Count.is_sure`."""
    beside: int
    """Instructions of the counted loops that are not on the counted ways."""
    problems: str = ""

    @property
    def key(self) -> gpu_limits.Key:
        return self.loss, self.dtype, self.shape, self.special, self.direction

    @property
    def is_pointwise(self) -> bool:
        return LOSSES[self.loss].family == "pointwise"


@dataclass
class Compiled:
    """A launch, and what it runs."""

    name: str
    blocks: int
    threads: int
    shared_bytes: int
    kernel: Kernel
    code: Code
    """What the launch may execute of the kernel."""


def row_of(cell: Cell, direction: str, backend: str, target: str, launches: list[Compiled]) -> Row:
    """The row of some launches, one of which stores all elements; others prepare something for it."""
    counts = [(_count(cell, each), each) for each in launches]
    found, main = min(counts, key=lambda pair: pair[0].missing)
    code = main.code
    loads, stores = (found.widths(code, kind) for kind in ("load", "store"))
    row = Row(
        *cell.key,
        direction=direction,
        backend=backend,
        target=target,
        kernel=main.name,
        launches=len(launches),
        threads=main.threads,
        registers=main.kernel.registers,
        local_bytes=max(_local(each.kernel) for each in launches),
        shared_bytes=main.kernel.shared_bytes + main.shared_bytes,
        loads=loads,
        stores=stores,
        instructions=round(found.per_element(code), 2),
        exponentials=round(found.per_element(code, lambda each: each.is_exponential), 3),
        special_functions=round(found.per_element(code, lambda each: each.is_special), 3),
        is_sure=found.is_sure,
        beside=found.beside,
    )
    problems = [f"{row.local_bytes} bytes of local memory"] if row.local_bytes else []
    if found.missing:
        problems.append(f"{found.missing} bytes of each element are not seen to be stored")
    if cell.is_aligned and not any(width.endswith(f"x{WIDE}") for width in f"{loads} {stores}".split()):
        problems.append(f"no access of {WIDE} bits")
    row.problems = "; ".join(problems)
    return row


def _local(kernel: Kernel) -> int:
    """Bytes of local memory, or at least 1 where there is an access to it."""
    accesses = any(each.is_local for each in kernel.code.instructions)
    return max(kernel.local_bytes, int(accesses))


def _count(cell: Cell, launch: Compiled) -> Count:
    share = None if cell.is_pointwise else cell.elements / (launch.blocks * launch.threads)
    return count(launch.code, cell.element, share)


def rows_of_triton(job: tuple[Cell, str]) -> list[Row]:
    """The rows of a cell on a target."""
    cell, name = job
    target = TARGETS[name]
    found = []
    for direction, launches in triton_launches(cell, target).items():
        compiled = []
        for launch in launches:
            kernel = compiled_by_triton(launch.compiled)
            threads = launch.compiled.metadata.num_warps * target.warp_size
            compiled.append(Compiled(launch.kernel, launch.programs, threads, 0, kernel, kernel.code))
        found.append(row_of(cell, direction, "triton", name, compiled))
    return found


def rows_of_cuda(cells: Iterable[Cell]) -> list[Row]:
    """The rows of cells, of the library that was built."""
    made = [(cell, *each) for cell in cells for each in cuda_launches(cell, cuda_library.ON_CPU).items()]
    names = sorted({launch.kernel for *_, launches in made for launch in launches})
    kernels = cuda_library.kernels(names, JUDGED, PROCESSES)
    short = dict(zip(names, map(cuda_library.short, cuda_library.demangled(names)), strict=True))
    found = []
    for cell, direction, launches in made:
        compiled = []
        for launch in launches:
            kernel = kernels[launch.kernel]
            sent = constants(launch.blocks, launch.threads, launch.argument)
            code = with_arguments(kernel.code, sent)
            numbers = launch.blocks, launch.threads, launch.shared_bytes
            compiled.append(Compiled(short[launch.kernel], *numbers, kernel, code))
        found.append(row_of(cell, direction, "cuda", JUDGED, compiled))
    return found


def rows_of(cells: list[Cell], backends: Iterable[str], targets: Iterable[str]) -> Iterator[Row]:
    """The rows of all that is asked for, CUDA's first."""
    if "cuda" in backends and JUDGED in targets:
        yield from rows_of_cuda(cells)
    if "triton" in backends:
        # What is special about some cells is so on all GPUs alike.
        jobs = [(cell, name) for name in targets for cell in cells if name == JUDGED or cell.is_usual]
        # Forked children would wait for ever for the threads with which torch has computed in this process.
        with ProcessPoolExecutor(PROCESSES, mp_context=get_context("spawn")) as pool:
            for found in pool.map(rows_of_triton, jobs):
                yield from found


def write(rows: Iterable[Row]) -> None:
    """Writes the rows to benchmarks/results/gpu-report.csv."""
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def table_of(rows: Iterable[Row]) -> Table:
    """A line for each cell and direction, with the instructions of both backends side by side.

    Lines that fail are red, those that miss a goal as they did are yellow.
    """
    table = Table(box=None)
    for name in ("", "", "", "", "", "CUDA", "of at most", "Triton", "of at most", "registers", "threads"):
        table.add_column(name, justify="left" if not name else "right")
    limits = gpu_limits.read()
    by_key: dict[gpu_limits.Key, dict[str, Row]] = {}
    for row in rows:
        by_key.setdefault(row.key, {})[row.backend] = row
    for key, of in by_key.items():
        numbers = []
        for backend in ("cuda", "triton"):
            row, limit = of.get(backend), gpu_limits.most(limits, key, backend)
            sign = "" if row is None or row.is_sure else "≥ "
            numbers += [f"{sign}{row.instructions:.1f}" if row else "", f"{limit:g}" if limit else ""]
        both = [of[backend] for backend in ("cuda", "triton") if backend in of]
        numbers += [" ".join(str(getattr(row, name)) for row in both) for name in ("registers", "threads")]
        missed = any(gpu_limits.too_many(row, both, limits) for row in both)
        style = "red" if gpu_limits.failures(both, limits) else "yellow" if missed else None
        table.add_row(*key, *numbers, style=style)
    return table


def remarks(rows: Iterable[Row]) -> list[str]:
    """What is wrong on architectures that limits are not about, in words."""
    return [
        f"{row.target} {row.backend} {' '.join(filter(None, row.key))}: {row.problems}"
        for row in rows
        if row.target != JUDGED and row.problems
    ]


def main(
    loss: Annotated[list[str] | None, typer.Option(help="Only these; nothing is written then.")] = None,
    backend: Annotated[list[str] | None, typer.Option(help="cuda, triton; nothing is written then.")] = None,
    target: Annotated[list[str] | None, typer.Option(help="Only these; nothing is written then.")] = None,
    check: Annotated[bool, typer.Option(help=f"Exit with 1 if there are problems on {JUDGED}.")] = False,
    accept: Annotated[
        bool,
        typer.Option(help="Take what is seen today for a limit where there is no goal, or it is missed."),
    ] = False,
) -> None:
    """The instructions of all kernels for each element; writes benchmarks/results/gpu-report.csv."""
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    backends = backend or ["cuda", "triton"]
    if "cuda" in backends and not (cuda_library.LIBRARY.exists() and cuda_library.ON_CPU.exists()):
        console.print(
            "There is no CUDA library (python benchmarks/cuda_library.py builds it): Triton's half alone."
        )
        backends = ["triton"]
    cells = [cell for cell in CELLS if not loss or cell.loss in loss]
    rows = list(rows_of(cells, backends, target or list(TARGETS)))
    judged = [row for row in rows if row.target == JUDGED]
    if accept:
        gpu_limits.write(gpu_limits.renewed(gpu_limits.read(), judged))
    console.print(table_of(judged))
    problems = gpu_limits.failures(judged, gpu_limits.read())
    console.print(*remarks(rows), *problems, sep="\n")
    console.print(f"{len(rows)} rows; {len(problems)} of {JUDGED} have problems.")
    if not loss and not target and len(backends) > 1:
        write(rows)
    if check and problems:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)

"""The machine code of every loss in Triton, for GPUs that need not be there: registers, spills, accesses.

python benchmarks/gpu_report.py --check
"""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from machine_code import Report, report_of
from rich.console import Console
from rich.table import Table
from triton.backends.compiler import GPUTarget

import fused_losses.functional
from fused_losses import triton_kernels
from fused_losses.registry import LOSSES
from fused_losses.triton_kernels.ahead_of_time import Launch, compiling

RESULTS = Path(__file__).parent / "results" / "gpu-report.csv"

TARGETS = {
    "cuda:80": GPUTarget("cuda", 80, 32),
    "cuda:90": GPUTarget("cuda", 90, 32),
    "cuda:100": GPUTarget("cuda", 100, 32),
    "hip:gfx942": GPUTarget("hip", "gfx942", 64),
}

# Shapes as in training, all aligned. Those that are not, or are small, run other variants of the kernels.
SHAPES: dict[str, list[tuple[int, ...]]] = {
    "elements": [(8192, 1024)],
    "classes": [(256, 32768), (256, 131072), (32, 21, 64, 64)],
    "scores": [(4096, 1024)],
    "vectors": [(65536, 128)],
}

DTYPES = (torch.bfloat16, torch.float32)

TILE = ("BLOCK", "ROWS", "CHUNK", "COLUMNS")
"""Constants of kernels whose product is the number of elements of a tile."""

PROCESSES = 2
"""How many compile at a time: the project's machines have two cores."""

WORST = 10
"""How many kernels the summary lists for each measure."""


@dataclass
class Row:
    """A kernel that a loss launches, compiled."""

    loss: str
    shape: str
    dtype: str
    direction: str
    target: str
    kernel: str
    tile: str
    warps: int
    registers: int
    spilled_bytes: int
    shared_bytes: int
    loads: str
    stores: str
    loops: int
    instructions: float
    """Per element of the tile; see `Report.per_element`."""
    exponentials: float
    special: float
    problems: str


def rows_of(job: tuple[str, str]) -> list[Row]:
    """The rows of all kernels of a loss on a target."""
    name, target = job
    return [row for shape in SHAPES[LOSSES[name].shapes] for row in _rows(name, target, shape)]


def _rows(name: str, target: str, shape: tuple[int, ...]) -> Iterator[Row]:
    for dtype in DTYPES:
        for direction, launches in _launches(name, TARGETS[target], shape, dtype).items():
            for launch in launches:
                constants = {each: launch.constants[each] for each in TILE if each in launch.constants}
                report = report_of(launch.compiled, math.prod(constants.values()))
                sizes = "x".join(map(str, shape))
                case = (name, sizes, str(dtype).removeprefix("torch."), direction, target)
                yield _row(case, launch, constants, report)


def _row(case: tuple[str, ...], launch: Launch, constants: dict[str, Any], report: Report) -> Row:
    return Row(
        *case,
        kernel=launch.kernel,
        tile="x".join(str(size) for size in constants.values()),
        warps=launch.compiled.metadata.num_warps,
        registers=report.resources.registers,
        spilled_bytes=report.resources.spilled,
        shared_bytes=report.resources.shared,
        loads=report.widths("load"),
        stores=report.widths("store"),
        loops=len(report.code.hot_loops),
        instructions=round(report.per_element(), 2),
        exponentials=round(report.per_element(lambda each: each.is_exponential), 3),
        special=round(report.per_element(lambda each: each.is_special), 3),
        problems="; ".join(report.problems),
    )


def _launches(
    name: str, target: GPUTarget, shape: tuple[int, ...], dtype: torch.dtype
) -> dict[str, list[Launch]]:
    """The launches of a training step whose backward makes the gradients again, by direction."""
    loss = LOSSES[name]
    few = loss.inputs((1, *shape[1:]), torch.Generator().manual_seed(0))
    inputs = [
        torch.empty(
            shape[:1] + x.shape[1:],
            device="meta",
            dtype=dtype if x.is_floating_point() else x.dtype,
            requires_grad=i in loss.trained,
        )
        for i, x in enumerate(few)
    ]
    function = getattr(fused_losses.functional, name)
    with compiling(target) as forward:
        value = function(*inputs, **loss.call)
    with compiling(target) as backward:
        torch.autograd.grad(value, [inputs[i] for i in loss.trained], torch.empty_like(value))
    return {"forward": forward, "backward": backward}


def write(rows: list[Row]) -> None:
    """Writes the rows to benchmarks/results/gpu-report.csv."""
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def table_of(rows: list[Row]) -> Table:
    table = Table(*(field.name.replace("_", " ") for field in fields(Row)), box=None)
    for row in rows:
        table.add_row(*map(str, astuple(row)), style="red" if row.problems else None)
    return table


def summary(rows: list[Row]) -> str:
    """How many kernels have problems, and the kernels with the most registers and instructions, in words."""
    if not rows:
        return "Nothing was compiled."
    faulty = [row for row in rows if row.problems]
    lines = [f"{len(rows)} kernels; {len(faulty)} have problems."]
    lines += [f"  {_name(row)}: {row.problems}" for row in faulty]
    for what in ("registers", "instructions"):
        lines.append(f"Most {what}{' per element' if what == 'instructions' else ''}:")
        worst = sorted(rows, key=lambda row: -getattr(row, what))[:WORST]
        lines += [f"  {getattr(row, what)}: {_name(row)}" for row in worst]
    return "\n".join(lines)


def _name(row: Row) -> str:
    return f"{row.target} {row.loss} {row.shape} {row.dtype} {row.direction} ({row.kernel} {row.tile})"


def main(
    loss: Annotated[list[str] | None, typer.Option(help="Only these; nothing is written then.")] = None,
    target: Annotated[list[str] | None, typer.Option(help="Only these; nothing is written then.")] = None,
    check: Annotated[bool, typer.Option(help="Exit with 1 if a kernel has problems.")] = False,
) -> None:
    """The machine code of all kernels; writes benchmarks/results/gpu-report.csv."""
    names = [name for name in LOSSES if LOSSES[name].family in triton_kernels.ENGINES]
    jobs = [(name, each) for each in target or TARGETS for name in loss or names]
    with ProcessPoolExecutor(PROCESSES) as pool:
        rows = [row for found in pool.map(rows_of, jobs) for row in found]
    console = Console(width=None if sys.stdout.isatty() else 240)
    console.print(table_of(rows))
    console.print(summary(rows), highlight=False)
    if not loss and not target:
        write(rows)
    if check and any(row.problems for row in rows):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)

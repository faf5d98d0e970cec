"""The machine code of the CUDA library, which need not run here: registers, spills, occupancy, widths.

python benchmarks/cuda_report.py --check
"""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, astuple, dataclass, fields
from pathlib import Path
from typing import Annotated

import typer
from machine_code import TOOLS, WIDE, Instruction
from rich.console import Console
from rich.table import Table

import fused_losses

LIBRARY = Path(fused_losses.__file__).parent / "_cuda.so"
RESULTS = Path(__file__).parent / "results" / "cuda-report.csv"

# A multiprocessor of sm_80, sm_90 or sm_100 has so many registers and holds so many warps.
REGISTERS = 65536
MOST_WARPS = 64
REGISTERS_AT_ONCE = 256
"""The unit in which registers are given to a warp."""

WARP = 32
THREADS = 128
"""Threads of a block (`kThreads` in csrc/cuda/engine.h), but for the kernels of LARGER."""
IN_PACKS = re.compile(
    r"Packed<|scale_kernel|pointwise_kernel<.*(float|double|Half|BFloat16)>$|tiles_kernel<.*[248]>$"
)
"""Kernels for tensors that lie ready in memory."""

# Kernels whose blocks for long rows are larger (`kMostThreads` in their sources). The first match counts.
LARGER = {
    r"softmax_rows_kernel<(\w+<double>|.*, true, )": 256,
    "softmax_rows_kernel": 512,
    "multi_margin_kernel": 512,
}


@dataclass
class Row:
    """A kernel for an architecture."""

    architecture: str
    kernel: str
    threads: int
    registers: int
    spills: int
    """How many instructions access local memory."""
    shared_bytes: int
    """Declared by the kernel itself."""
    occupancy: float
    """Which part of the warps that a multiprocessor can hold, its registers allow."""
    loads: str
    stores: str
    instructions: int
    exponentials: int
    problems: str


def resources() -> dict[tuple[str, str], dict[str, int]]:
    """What every kernel uses ("REG": registers, "SHARED": bytes, ...), by architecture and name."""
    found, architecture, name = {}, "", ""
    for line in _lines("-res-usage"):
        if match := re.match(r"arch = (\S+)", line):
            architecture = match[1]
        elif match := re.match(r"\s*Function (\S+):", line):
            name = match[1]
        elif "REG:" in line:
            found[architecture, name] = {key: int(n) for key, n in re.findall(r"([A-Z]+):(\d+)", line)}
    return found


def codes() -> Iterator[tuple[tuple[str, str], list[Instruction]]]:
    """The instructions of every kernel, with its architecture and name."""
    key, code = ("", ""), []
    architecture = ""
    for line in _lines("-sass"):
        if match := re.match(r"\s*arch = (\S+)", line):
            architecture = match[1]
        elif match := re.match(r"\s*Function : (\S+)", line):
            if code:
                yield key, code
            key, code = (architecture, match[1]), []
        elif match := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;", line):
            code.append(Instruction(match[1], ""))
    if code:
        yield key, code


def _lines(what: str) -> Iterator[str]:
    with subprocess.Popen([TOOLS / "cuobjdump", what, LIBRARY], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        yield from running.stdout


def readable(names: list[str]) -> dict[str, str]:
    """Names as sources have them, without what they all share."""
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    short = (
        re.sub(r"\(anonymous namespace\)::|fused_losses::|c10::|^void |\(.*$", "", line)
        for line in (re.sub(r"\(bool\)|\(int\)", "", each) for each in done.stdout.splitlines())
    )
    return dict(zip(names, short, strict=True))


def occupancy(registers: int, threads: int) -> float:
    """Which part of a multiprocessor's warps blocks of so many threads can fill."""
    per_warp = -(-registers * WARP // REGISTERS_AT_ONCE) * REGISTERS_AT_ONCE
    blocks = REGISTERS // per_warp // (threads // WARP)
    return min(blocks * (threads // WARP), MOST_WARPS) / MOST_WARPS


def rows() -> list[Row]:
    """All kernels of the library."""
    used = resources()
    names = readable(sorted({name for _, name in used}))
    found = []
    for key, code in codes():
        architecture, mangled = key
        kernel, usage = names[mangled], used[key]
        threads = next((n for name, n in LARGER.items() if re.match(name, kernel)), THREADS)
        accesses = [each.access for each in code if each.access]
        spills = sum(bool(re.search(r"\b(LDL|STL)\b", each.text)) for each in code)
        problems = ["spills"] if spills else []
        if IN_PACKS.search(kernel) and max(bits for _, bits in accesses) < WIDE:
            problems.append(f"no access of {WIDE} bits")
        found.append(
            Row(
                architecture,
                kernel,
                threads,
                usage["REG"],
                spills,
                usage.get("SHARED", 0),
                round(occupancy(usage["REG"], threads), 3),
                *(_said(bits for of, bits in accesses if of == kind) for kind in ("load", "store")),
                len(code),
                sum(each.is_exponential for each in code),
                "; ".join(problems),
            )
        )
    return sorted(found, key=lambda row: (row.kernel, row.architecture))


def _said(widths: Iterable[int]) -> str:
    return " ".join(f"{count}x{bits}" for bits, count in sorted(Counter(widths).items(), reverse=True))


def table_of(rows: list[Row]) -> Table:
    table = Table(*(field.name.replace("_", " ") for field in fields(Row)), box=None)
    for row in rows:
        table.add_row(*map(str, astuple(row)), style="red" if row.problems else None)
    return table


def main(
    check: Annotated[bool, typer.Option(help="Exit with 1 if a kernel has problems.")] = False,
) -> None:
    """The machine code of all kernels of the CUDA library; writes benchmarks/results/cuda-report.csv."""
    if not LIBRARY.exists():
        sys.exit(f"{LIBRARY.name} was not built: FUSED_LOSSES_CUDA=1 pip install --no-build-isolation -e .")
    found = rows()
    console = Console(width=None if sys.stdout.isatty() else 240)
    console.print(table_of(found))
    with RESULTS.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in found)
    faulty = [row for row in found if row.problems]
    for architecture in sorted({row.architecture for row in found}):
        own = [row for row in found if row.architecture == architecture]
        most, least = max(row.registers for row in own), min(row.occupancy for row in own)
        console.print(
            f"{architecture}: {len(own)} kernels, {sum(bool(row.spills) for row in own)} of which spill; "
            f"at most {most} registers, occupancy at least {least:.0%}",
            highlight=False,
        )
    console.print(f"{len(found)} kernels, of which {len(faulty)} have problems.", highlight=False)
    if check and faulty:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)

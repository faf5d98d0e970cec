"""What a run leaves behind: a table on the terminal and a CSV file."""

import csv
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import torch
from rich import box
from rich.table import Table

MIB = 2**20


@dataclass(frozen=True)
class Machine:
    """Where and when a run took place: the first columns of the CSV.

    ``load`` is the load average of the last minute before the run, where the system knows it.
    """

    machine: str
    cores: int
    date: str
    torch: str
    fused_losses: str
    isa: str
    threads: int
    load: float | None

    @classmethod
    def this(cls) -> "Machine":
        """This machine, now."""
        try:
            version = metadata.version("fused_losses")
        except metadata.PackageNotFoundError:
            version = "not installed"
        return cls(
            machine=_cpu_model(),
            cores=os.cpu_count() or 0,
            date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            torch=torch.__version__,
            fused_losses=version,
            isa=torch.backends.cpu.get_cpu_capability(),
            threads=torch.get_num_threads(),
            load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        )


@dataclass(frozen=True)
class Row:
    """One provider on one case: the other columns of the CSV. None is an empty field.

    ``vs_eager`` and ``vs_compile`` say how many times faster this is; ``gbps`` is in 1e9 bytes per
    second; ``status`` is "ok" or the reason why nothing was timed.
    """

    loss: str
    shape: str
    dtype: str
    provider: str
    pass_: str
    rounds: int
    status: str
    median_ms: float | None
    p10_ms: float | None
    p90_ms: float | None
    vs_eager: float | None
    vs_compile: float | None
    gbps: float | None
    copy_gbps: float | None
    peak_mib: float | None
    logits_mib: float
    grad_max_ulp: float | None
    loss_rel_err: float | None

    @property
    def copy_percent(self) -> float | None:
        """The bandwidth reached, in percent of what a copy reached in the same run."""
        if self.gbps is None or self.copy_gbps is None:
            return None
        return 100 * self.gbps / self.copy_gbps


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def write_csv(path: Path, machine: Machine, rows: Iterable[Row]) -> None:
    """Writes the rows, each with the machine's columns before its own."""
    # `pass` is a keyword of the language and a name for a column.
    columns = [field.name.rstrip("_") for kind in (Machine, Row) for field in fields(kind)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for row in rows:
            values = [*asdict(machine).values(), *asdict(row).values()]
            # Five digits: more than the machine repeats.
            writer.writerow([f"{v:.5g}" if isinstance(v, float) else v for v in values])


def _number(value: float | None, digits: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{digits}}{unit}"


def results_table(rows: Sequence[Row], machine: Machine) -> Table:
    """A line per row, a section per case, then the geometric means of `summary`."""
    table = Table(
        title=f"{rows[0].pass_}, {machine.threads} threads, {machine.isa}, {machine.machine}",
        caption="vs: times faster, median of the ratios of the rounds. "
        "% copy: of the bandwidth of a copy in the same run.",
        box=box.SIMPLE,
        collapse_padding=True,
    )
    table.add_column("case", overflow="fold")
    table.add_column("provider")
    headings = ("ms", "p10-p90", "vs eager", "vs compile", "GB/s", "% copy", "peak MiB")
    for heading in (*headings, "grad ulp", "loss error"):
        table.add_column(heading, justify="right", no_wrap=True)
    previous = ""
    for row in rows:
        case = f"{row.loss} {row.shape} {row.dtype}"
        if case != previous:
            table.add_section()
        table.add_row("" if case == previous else case, row.provider, *_cells(row))
        previous = case
    for dtype in dict.fromkeys(row.dtype for row in rows):
        table.add_section()
        for cells in summary([row for row in rows if row.dtype == dtype]):
            table.add_row(f"geometric mean {dtype}", *cells)
    return table


def _cells(row: Row) -> list[str]:
    accuracy = [_number(row.grad_max_ulp, ".1f"), _number(row.loss_rel_err, ".0e")]
    if row.median_ms is None:
        # The reason takes the place of the numbers, which a narrow column would cut.
        return [f"[bold red]{row.status.partition(':')[0]}[/]", *[""] * 6, *accuracy]
    peak = "" if row.peak_mib is None else f"{row.peak_mib:.1f} of {row.logits_mib:.1f}"
    return [
        _number(row.median_ms, ".3g"),
        f"{row.p10_ms:.3g}-{row.p90_ms:.3g}",
        _number(row.vs_eager, ".2f", "x"),
        _number(row.vs_compile, ".2f", "x"),
        _number(row.gbps, ".1f"),
        _number(row.copy_percent, ".0f", "%"),
        peak,
        *accuracy,
    ]


def summary(rows: Sequence[Row]) -> list[list[str]]:
    """Per provider, the geometric mean over the cases in which it was timed."""
    lines = []
    for provider in dict.fromkeys(row.provider for row in rows):
        mine = [row for row in rows if row.provider == provider and row.median_ms is not None]
        lines.append(
            [
                provider,
                "",
                "",
                _mean([row.vs_eager for row in mine], ".2f", "x"),
                _mean([row.vs_compile for row in mine], ".2f", "x"),
                "",
                _mean([row.copy_percent for row in mine], ".0f", "%"),
            ]
        )
    return lines


def _mean(values: Iterable[float | None], digits: str, unit: str) -> str:
    known = [value for value in values if value is not None]
    return _number(statistics.geometric_mean(known) if known else None, digits, unit)

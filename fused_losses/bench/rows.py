"""The rows of a run's CSV file, and how the file is written and read."""

from __future__ import annotations

import csv
import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import torch

OK = "ok"
MIB = 2**20

# Seconds to wait for git and nvidia-smi, which answer within one: a driver that hangs must not hold up a run.
PROGRAM_SECONDS = 10


@dataclass(frozen=True)
class Machine:
    """Where and when a run took place: the first columns of the CSV.

    ``isa`` is the CPU's instruction set or the GPU's architecture; ``load`` is the load average of the minute
    before the run, where the system knows it. ``driver`` is empty for runs on a CPU; ``commit`` is that of
    the package's sources, where they are in git; ``clocks`` is how fast the processor ran when the run began.
    """

    machine: str
    cores: int
    date: str
    torch: str
    fused_losses: str
    isa: str
    threads: int
    load: float | None
    driver: str = ""
    triton: str = ""
    commit: str = ""
    clocks: str = ""

    @classmethod
    def this(cls, device: str = "cpu") -> Machine:
        """This machine, now; its GPU where the device is one."""
        on_gpu = device != "cpu"
        return cls(
            machine=torch.cuda.get_device_name() if on_gpu else _cpu_model(),
            cores=os.cpu_count() or 0,
            date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            torch=torch.__version__,
            fused_losses=_version("fused_losses") or "not installed",
            isa=_gpu_architecture() if on_gpu else torch.backends.cpu.get_cpu_capability(),
            threads=torch.get_num_threads(),
            load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
            driver=_of_gpu("driver_version") if on_gpu else "",
            triton=_version("triton"),
            commit=_commit(),
            clocks=_gpu_clocks() if on_gpu else _cpu_clock(),
        )

    @property
    def is_gpu(self) -> bool:
        """Whether the times are a GPU's, whose `isa` is an architecture."""
        return self.isa.startswith(("sm_", "gfx"))

    @property
    def place(self) -> str:
        """The device that computed, in words."""
        if self.is_gpu:
            return f"{self.machine} ({self.isa})"
        return f"{self.threads} threads of {self.machine} ({self.isa})"


@dataclass(frozen=True)
class Row:
    """One provider on one case: the other columns of the CSV. None is an empty field.

    ``vs_eager`` and ``vs_compile`` say how many times faster this is. ``floor_ms`` is how long a copy of the
    bytes that must move took in the same run (behind a linear layer: the layer's three matrix products), and
    ``vs_floor`` how many times longer this takes. ``gbps`` is in 1e9 bytes per second. ``peak_mib`` is the
    peak of a step beyond its inputs, and includes its results, ``gradients_mib``. ``status`` is "ok" or the
    reason why nothing was timed.

    ``variant`` is how the call differs from the loss's usual one, ``kernels`` whose kernels served it. On a
    GPU, the times are those of the kernels, and ``host_ms`` is how long the call took the host.
    ``percent_of_copy`` is ``gbps`` in per cent of ``copy_gbps``. ``note`` says what limits the numbers'
    worth.
    """

    loss: str
    size: str
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
    floor_ms: float | None
    vs_floor: float | None
    peak_mib: float | None
    gradients_mib: float | None
    logits_mib: float
    grad_max_ulp: float | None
    loss_rel_err: float | None
    variant: str = ""
    kernels: str = ""
    host_ms: float | None = None
    percent_of_copy: float | None = None
    note: str = ""

    @property
    def name(self) -> str:
        """Loss, shape and variant."""
        return f"{self.loss} {self.shape} {self.variant}".rstrip()

    @property
    def case(self) -> str:
        """Loss, shape, dtype and variant."""
        return f"{self.loss} {self.shape} {self.dtype} {self.variant}".rstrip()


def steps(rows: Sequence[Row]) -> list[Row]:
    """The rows of whole steps; all of them where there are none."""
    return [row for row in rows if row.pass_ == "step"] or list(rows)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _output(*command: str) -> str:
    """What a program prints; nothing if it is missing or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PROGRAM_SECONDS)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _of_gpu(query: str) -> str:
    """What nvidia-smi says of the first GPU."""
    lines = _output("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits")
    return lines.partition("\n")[0]


def _gpu_clocks() -> str:
    """The clocks of processors and memory, each with the most that it may be."""
    values = _of_gpu("clocks.sm,clocks.max.sm,clocks.mem,clocks.max.mem").split(", ")
    if len(values) != 4:
        return ""
    return "processors {} of {} MHz, memory {} of {} MHz".format(*values)


def _cpu_clock() -> str:
    """The mean of the cores' clocks, where the system knows them."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    clocks = [float(line.partition(":")[2]) for line in lines if line.startswith("cpu MHz")]
    return f"{sum(clocks) / len(clocks):.0f} MHz" if clocks else ""


def _commit() -> str:
    """The commit of the package's sources, or FUSED_LOSSES_COMMIT where they were copied without git."""
    folder = str(Path(__file__).parent)
    # An installed package may lie in the repository of another project.
    if not _output("git", "-C", folder, "ls-files", "rows.py"):
        return os.environ.get("FUSED_LOSSES_COMMIT", "")
    return _output("git", "-C", folder, "describe", "--always", "--dirty", "--exclude=*")


def _gpu_architecture() -> str:
    properties = torch.cuda.get_device_properties()
    # NVIDIA's GPUs have the attribute, too: their name.
    return properties.gcnArchName if torch.version.hip else f"sm_{properties.major}{properties.minor}"


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _columns(kind: type) -> list[str]:
    # The column `pass` is the field `pass_`, since `pass` is a keyword.
    return [field.name.rstrip("_") for field in fields(kind)]


@contextmanager
def writer(path: Path, machine: Machine, append: bool = False) -> Iterator[Callable[[Iterable[Row]], None]]:
    """A function that adds rows to a file at once, so that a run cut short leaves what it has.

    The file is a new one, or with `append` an existing one. However the run ends, a file of the same name
    that ends in .json then has the same rows.

    Raises:
        ValueError: an existing file with other columns.
    """
    columns = [*_columns(Machine), *_columns(Row)]
    path.parent.mkdir(parents=True, exist_ok=True)
    if append:
        with path.open(newline="") as file:
            if next(csv.reader(file), None) != columns:
                raise ValueError(f"{path} has other columns: another version of the benchmark wrote it")
    with path.open("a" if append else "w", newline="") as file:
        output = csv.writer(file)
        if not append:
            output.writerow(columns)

        def write(rows: Iterable[Row]) -> None:
            for row in rows:
                values = [*asdict(machine).values(), *asdict(row).values()]
                # Five digits are more than repeated runs agree in.
                output.writerow([f"{v:.5g}" if isinstance(v, float) else v for v in values])
            file.flush()

        try:
            yield write
        finally:
            write_json(path)


def write_json(path: Path) -> None:
    """Writes a CSV file's rows as JSON beside it: a list of objects, in which an empty field is null."""
    with path.open(newline="") as file:
        records = list(csv.DictReader(file))
    types = {**_types(Machine), **_types(Row)}
    values = [
        {name: _value(types[name], text) if text else None for name, text in record.items()}
        for record in records
    ]
    path.with_suffix(".json").write_text(json.dumps(values, indent=1) + "\n")


def _types(kind: type) -> dict[str, Any]:
    return dict(zip(_columns(kind), get_type_hints(kind).values(), strict=True))


def read(path: Path) -> tuple[Machine, list[Row]]:
    """The machine and the rows of a file; a column that may be empty may be missing.

    Raises:
        ValueError: a file without rows, or without one of the other columns.
    """
    with path.open(newline="") as file:
        records = list(csv.DictReader(file))
    if not records:
        raise ValueError(f"{path} has no rows")
    missing = {*_required(Machine), *_required(Row)} - records[0].keys()
    if missing:
        raise ValueError(f"{path} has no column {', '.join(sorted(missing))}: an older benchmark wrote it")
    return _parse(Machine, records[:1])[0], _parse(Row, records)


_Record = TypeVar("_Record", Machine, Row)


def _parse(kind: type[_Record], records: Sequence[dict[str, str]]) -> list[_Record]:
    types = get_type_hints(kind)
    columns = list(zip(types, _columns(kind), strict=True))
    return [
        kind(**{name: _value(types[name], record.get(column, "")) for name, column in columns})
        for record in records
    ]


def _required(kind: type) -> list[str]:
    """Columns that no file may lack; files of older benchmarks have no sizes, and fewer numbers."""
    types = get_type_hints(kind)
    return [
        field.name.rstrip("_")
        for field in fields(kind)
        if types[field.name] in (str, int, float) and field.default is MISSING and field.name != "size"
    ]


def _value(kind: Any, text: str) -> Any:
    if kind in (str, int):
        return kind(text)
    return float(text) if text else None

"""What a run measured: the rows of its CSV file, and the file."""

from __future__ import annotations

import csv
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import torch

OK = "ok"


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
    def this(cls, device: str = "cpu") -> Machine:
        """This machine, now; its GPU, if that is what computes."""
        try:
            version = metadata.version("fused_losses")
        except metadata.PackageNotFoundError:
            version = "not installed"
        return cls(
            machine=_cpu_model() if device == "cpu" else torch.cuda.get_device_name(),
            cores=os.cpu_count() or 0,
            date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            torch=torch.__version__,
            fused_losses=version,
            isa=torch.backends.cpu.get_cpu_capability() if device == "cpu" else _gpu_architecture(),
            threads=torch.get_num_threads(),
            load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        )


@dataclass(frozen=True)
class Row:
    """One provider on one case: the other columns of the CSV. None is an empty field.

    ``vs_eager`` and ``vs_compile`` say how many times faster this is; ``floor_ms`` is how long a copy
    of the bytes that must move took in the same run (behind a linear layer: the layer's three matrix
    products), ``vs_floor`` how many times longer this takes; ``gbps`` is in 1e9 bytes per second;
    ``peak_mib`` is the peak of a step beyond its inputs, of which ``gradients_mib`` are its results;
    ``status`` is "ok" or the reason why nothing was timed.
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

    @property
    def case(self) -> str:
        """What was measured, in one line."""
        return f"{self.loss} {self.shape} {self.dtype}"


def _gpu_architecture() -> str:
    properties = torch.cuda.get_device_properties()
    return getattr(properties, "gcnArchName", f"sm_{properties.major}{properties.minor}")


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _columns(kind: type) -> list[str]:
    # `pass` is a keyword of the language and a name for a column.
    return [field.name.rstrip("_") for field in fields(kind)]


@contextmanager
def writer(path: Path, machine: Machine, append: bool = False) -> Iterator[Callable[[Iterable[Row]], None]]:
    """A function that adds rows to a file at once, so that a run cut short leaves what it has.

    The file is a new one, or with `append` one that is there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a" if append else "w", newline="") as file:
        output = csv.writer(file)
        if not append:
            output.writerow([*_columns(Machine), *_columns(Row)])

        def write(rows: Iterable[Row]) -> None:
            for row in rows:
                values = [*asdict(machine).values(), *asdict(row).values()]
                # Five digits: more than the machine repeats.
                output.writerow([f"{v:.5g}" if isinstance(v, float) else v for v in values])
            file.flush()

        yield write


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
    """Columns that no file may lack: older ones have no sizes, and fewer numbers."""
    types = get_type_hints(kind)
    columns = zip(types, _columns(kind), strict=True)
    return [column for name, column in columns if types[name] in (str, int, float) and name != "size"]


def _value(kind: Any, text: str) -> Any:
    if kind in (str, int):
        return kind(text)
    return float(text) if text else None

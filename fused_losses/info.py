"""What is installed and what runs: `python -m fused_losses.info [--json]`.

Example:
    >>> from fused_losses import info
    >>> info.collect()["losses"]["mse_loss"]["module"]
    'MSELoss'
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import textwrap
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

import torch

import fused_losses
from fused_losses import backends, devices, registry

WIDTH = 100
"""The most characters in a line of the report: as many as an issue on the web shows without scrolling."""


def _probe(read: Callable[[], Any]) -> Any:
    """What `read` returns, or a text about what it raises, so that the rest of the report is still there."""
    try:
        return read()
    except Exception as error:
        return f"unknown ({type(error).__name__}: {error})"


def _built() -> dict[str, Any]:
    from fused_losses import _C

    return {
        "compiler": _C.compiler,
        "torch": _C.torch_version,
        "CPU libraries": _C.cpu_libraries,
        "CUDA architectures": _C.cuda_architectures,
    }


def _processor() -> str:
    with open("/proc/cpuinfo") as file:
        return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))


def _cpu() -> dict[str, Any]:
    chosen = backends.cpu_library
    return {
        "processor": _probe(_processor),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch uses": torch.backends.cpu.get_cpu_capability(),
        "library": chosen.name if chosen else "none: losses run through torch",
        "gradient buffers held, bytes": _probe(fused_losses.cached_bytes),
    }


def _triton() -> str:
    if not backends.has_triton():
        return "not installed"
    version = metadata.version("triton")
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    serves = list(devices.triton)
    return f"{version}, serves {', '.join(serves) or 'nothing here'}" + ", interpreted" * interpreted


def _cuda_library() -> str:
    if backends.cuda_library_rests is not None:
        return f"serves no GPU: {backends.cuda_library_rests}"
    return "loaded" if "cuda" in devices.compiled else "not loaded"


def _devices() -> list[str]:
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]


def collect() -> dict[str, Any]:
    """The report, as plain data.

    Example:
        >>> from fused_losses import info
        >>> sorted(info.collect()["built"])
        ['CPU libraries', 'CUDA architectures', 'compiler', 'torch']
    """
    gpus = _probe(_devices)  # initialises CUDA, after which it is clear whose kernels serve
    served = devices.table()
    return {
        "fused_losses": fused_losses.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "built": _probe(_built),
        "cpu": _probe(_cpu),
        "triton": _probe(_triton),
        "CUDA library": _probe(_cuda_library),
        "gpus": gpus,
        "losses": {
            name: {**registry.describe(loss), **served, "other devices": "torch"}
            for name, loss in registry.LOSSES.items()
        },
        "torch's own, passed on": list(registry.TORCHS_OWN),
    }


def _lines(report: dict[str, Any], indent: str = "") -> Iterator[str]:
    """The report's lines, each with what follows from it further in."""
    for key, value in report.items():
        if key == "losses":
            yield from _lines_of_losses(value)
        elif isinstance(value, dict):
            yield f"{indent}{key}"
            yield from _lines(value, f"{indent}  ")
        else:
            yield f"{indent}{key}: {_plain(value)}"


def _lines_of_losses(losses: dict[str, dict[str, Any]]) -> Iterator[str]:
    """What serves all losses, then each with its module, and the options that torch does not have."""
    described = ("module", "family", "extensions")
    served = {device: by for device, by in next(iter(losses.values())).items() if device not in described}
    yield f"losses ({', '.join(f'{device}: {by}' for device, by in served.items())})"
    for name, loss in losses.items():
        beyond = f"; beyond torch: {_plain(loss['extensions'])}" if loss["extensions"] else ""
        yield f"  {name}: {loss['module']}{beyond}"


def _plain(value: Any) -> str:
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)


def _folded(line: str) -> str:
    """A line of the report in as many as it takes, those after the first further in."""
    indent = " " * (len(line) - len(line.lstrip()))
    return textwrap.fill(line.lstrip(), WIDTH, initial_indent=indent, subsequent_indent=f"{indent}    ")


def main() -> None:
    """Prints the report, for people or, with --json, for programs."""
    parser = argparse.ArgumentParser(
        prog="python -m fused_losses.info",
        description="Tells what is installed, which kernels serve which device, and what every loss takes.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    for_programs = parser.parse_args().json
    report = collect()
    print(json.dumps(report, indent=2) if for_programs else "\n".join(map(_folded, _lines(report))))


if __name__ == "__main__":
    main()

"""What is installed and what runs: `python -m fused_losses.info [--json]`."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch

import fused_losses
from fused_losses import backends, devices, registry


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
    """The report, as plain data."""
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


def _lines(value: Any, indent: int = 0) -> list[str]:
    lines = []
    for key, inner in value.items():
        if isinstance(inner, dict) and indent < 2:
            lines += [f"{' ' * indent}{key}", *_lines(inner, indent + 2)]
        else:
            if isinstance(inner, dict):
                inner = ", ".join(f"{name}: {_plain(part)}" for name, part in inner.items())
            lines.append(f"{' ' * indent}{key}: {_plain(inner)}")
    return lines


def _plain(value: Any) -> str:
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)


def main() -> None:
    """Prints the report, for people or, with --json, for programs."""
    report = collect()
    print(json.dumps(report, indent=2) if "--json" in sys.argv[1:] else "\n".join(_lines(report)))


if __name__ == "__main__":
    main()

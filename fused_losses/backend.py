"""Which compiled libraries are there, and which one serves the CPU."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

logger = logging.getLogger("fused_losses")
logger.addHandler(logging.NullHandler())

# From the widest down: a machine runs every set after its own, too.
_INSTRUCTION_SETS = ("avx512", "avx2", "default")

devices: set[str] = set()
"""Device types that have kernels; tensors elsewhere go to torch's own functions."""

cpu_library: Path | None = None
"""The library that serves the CPU: the best of those built that the machine can run."""


def built_cpu_libraries() -> dict[str, Path]:
    """The CPU libraries in this installation, by instruction set."""
    folder = Path(__file__).parent
    paths = {name: folder / f"_cpu_{name}.so" for name in _INSTRUCTION_SETS}
    return {name: path for name, path in paths.items() if path.exists()}


def usable_instruction_sets() -> tuple[str, ...]:
    """Those that torch would use on this machine, best first; ATEN_CPU_CAPABILITY lowers it."""
    best = torch.backends.cpu.get_cpu_capability().lower()
    start = _INSTRUCTION_SETS.index(best) if best in _INSTRUCTION_SETS else -1
    return _INSTRUCTION_SETS[start:]


def load() -> None:
    """Loads one CPU library. Without one, everything still works, through torch."""
    global cpu_library
    built = built_cpu_libraries()
    for name in usable_instruction_sets():
        if name not in built:
            continue
        try:
            torch.ops.load_library(str(built[name]))
        except OSError as error:
            logger.warning("fused_losses: %s does not load (%s)", built[name].name, error)
            continue
        cpu_library = built[name]
        devices.add("cpu")
        return
    logger.warning(
        "fused_losses: no CPU library for %s among those built (%s); losses run through torch. "
        "Reinstall with FUSED_LOSSES_CPU=all to build every one.",
        " or ".join(usable_instruction_sets()),
        ", ".join(built) or "none",
    )

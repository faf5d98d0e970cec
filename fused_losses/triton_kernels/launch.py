"""The one place that launches kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from fused_losses.triton_kernels import plan

taker: Callable[[Any, int, tuple[Any, ...], dict[str, Any]], None] | None = None
"""Takes launches (kernel, programs, arguments, constants) in the device's stead; see `ahead_of_time`."""


REGISTERS = 65536
"""Of a processor."""

MOST_REGISTERS = 255
"""Of a thread."""


def compiler_options(constants: dict[str, Any], backend: str, warp: int) -> dict[str, Any]:
    """What a kernel is compiled with, for "cuda" or "hip" and so many threads in a warp; plans count 32."""
    threads = constants["num_warps"] * plan.WARP
    # Kernels that may assert would have every sum of int32 checked for an overflow, too.
    options = {**constants, "num_warps": max(1, threads // warp), "sanitize_overflow": False}
    if backend == "cuda":
        # Otherwise, the assembler spills a few registers where this lets one more program be resident.
        options["maxnreg"] = min(MOST_REGISTERS, REGISTERS // threads)
    return options


@cache
def _warp(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).warp_size)


def launch(kernel: Any, programs: int, device: torch.device, *arguments: Any, **constants: Any) -> None:
    """`programs` programs of a kernel, on the tensors' device, which is the current one, and its stream."""
    if taker is not None:
        taker(kernel, programs, arguments, constants)
        return
    if device.type != "cuda":  # the interpreter
        kernel[(programs,)](*arguments, **constants)
        return
    options = compiler_options(constants, "hip" if torch.version.hip else "cuda", _warp(device))
    kernel[(programs,)](*arguments, **options)

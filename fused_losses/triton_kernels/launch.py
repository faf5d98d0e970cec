"""The one place that launches kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import triton

from fused_losses.triton_kernels.tiling import WARP

launch_hook: Callable[[Any, int, dict[str, Any], dict[str, Any]], None] | None = None
"""Takes launches (kernel, programs, arguments, constants) in the device's stead; see `ahead_of_time`."""

ENDS_WITH_NONE = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8)
"""Whether tuples of tuples need a None at their end.

Up to Triton 3.6 (3.7 was not tried), a tuple's type is made again whenever one of its own elements is
compiled in, which None and a stride of 1 are, but not when an element of a tuple within it is. The latter is
taken for None then, unless one of the former comes later: (None, (60, 1)) would become (None, (60, None)).
"""

REGISTERS = 65536
"""What a processor has for all its threads, on every GPU that Triton compiles for."""

MOST_REGISTERS = 255
"""The most that a thread can address."""


def compiler_options(constants: dict[str, Any], backend: str, warp: int) -> dict[str, Any]:
    """What a kernel is compiled with, for "cuda" or "hip" and so many threads in a warp.

    `constants` have the kernel's constants, options of the compiler, and `num_warps`, warps of 32 threads.
    The option `maxnreg`, the registers that a thread may have, is for "cuda" alone.
    """
    threads = constants["num_warps"] * WARP
    # Kernels that may assert would have every sum of int32 checked for an overflow, too.
    options = {**constants, "num_warps": max(1, threads // warp), "sanitize_overflow": False}
    most = options.pop("maxnreg", MOST_REGISTERS)
    if backend == "cuda":
        # Otherwise, the assembler spills a few registers where this lets one more program be resident.
        options["maxnreg"] = min(most, REGISTERS // threads)
    return options


@cache
def _warp(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).warp_size)


def _ended(argument: Any) -> Any:
    """The argument, in which tuples that need it have a None at their end, which no kernel reads."""
    if not isinstance(argument, tuple):
        return argument
    has_tuples = any(isinstance(x, tuple) for x in argument)
    has_constants = any(x is None or (isinstance(x, int) and x == 1) for x in argument)
    ended = tuple(map(_ended, argument))
    return (*ended, None) if has_tuples and has_constants else ended


def launch(
    kernel: Any, programs: int, device: torch.device, arguments: dict[str, Any], **constants: Any
) -> None:
    """Runs `programs` programs of a kernel on the tensors' device, which is the current one, and its stream.

    `arguments` are the kernel's by name, but for those that are compiled in. These are among `constants`, as
    are options of the compiler, such as `num_warps`.
    """
    if ENDS_WITH_NONE:
        arguments = {name: _ended(argument) for name, argument in arguments.items()}
    if launch_hook is not None:
        launch_hook(kernel, programs, arguments, constants)
        return
    if device.type != "cuda":  # the interpreter
        kernel[(programs,)](**arguments, **constants)
        return
    options = compiler_options(constants, "hip" if torch.version.hip else "cuda", _warp(device))
    kernel[(programs,)](**arguments, **options)

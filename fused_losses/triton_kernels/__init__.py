"""Every loss in Triton: kernels for GPUs that no compiled library serves. No C++ compiler is needed.

`register` makes them the kernels of a dispatch key. In Triton's interpreter they run on CPU tensors.

A call goes through `operators.py`, which makes the results and an `EngineCall`, to an engine of its loss's
family: `pointwise.py`, `vectors.py`, `softmax.py` or `class_margin.py`. The engine's `run` describes the
tensors to a kernel (`iteration.py`), chooses a tile (`tiling.py`) and launches (`launch.py`). Kernels read
and write through `memory.py`, take their mathematics from `formulas/`, and add up the loss by `reduce.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from triton import knobs

from fused_losses.registry import LOSSES, Family
from fused_losses.triton_kernels import class_margin, pointwise, scale, softmax, vectors
from fused_losses.triton_kernels.memory_checks import checked, checked_scale
from fused_losses.triton_kernels.operators import Engine, on_their_device, operators_for

ENGINES: dict[Family, Engine] = {
    "pointwise": pointwise.run,
    "vectors": vectors.run,
    "softmax": softmax.run,
    "class_margin": class_margin.run,
}


def key() -> str:
    """The dispatch key that Triton can serve here."""
    return "CPU" if knobs.runtime.interpret else "CUDA"


def register(choose: Callable[[str, str, Callable[..., Any]], Callable[..., Any]]) -> torch.library.Library:
    """Takes the key for all operators; destroying the library that is returned gives it back.

    Args:
        choose: Makes, from an operator's name, the key and Triton's function, what is registered: a function
            of the dispatcher's keys and the operator's arguments.
    """
    library = torch.library.Library("fused_losses", "IMPL", key())
    for name, function in _implementations().items():
        library.impl(name, choose(name, key(), function), with_keyset=True, allow_override=True)
    return library


def _implementations() -> dict[str, Callable[..., Any]]:
    functions: dict[str, Callable[..., Any]] = {"scale_": checked_scale(on_their_device(scale.run))}
    for name, loss in LOSSES.items():
        if loss.family not in ENGINES:
            continue
        names = (name, f"{name}_", f"{name}_backward", f"{name}_backward_")
        operators = map(on_their_device, operators_for(loss, ENGINES[loss.family]))
        functions.update(zip(names, checked(loss, *operators), strict=True))
    return functions

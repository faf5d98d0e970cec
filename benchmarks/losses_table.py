"""Which losses there are, what runs them, and what they can do beyond torch's: a Markdown table."""

from __future__ import annotations

import inspect

import torch
import torch.nn.functional as torchs
from torch import Generator

import fused_losses
from fused_losses import functional, modules
from fused_losses.losses.twins import twin_of
from fused_losses.registry import EXTRA_GRADIENT, INPUT_GRADIENT, LINEAR, LOSSES, TARGET_GRADIENT, Loss

HEADINGS = ("function", "module", "engine", "options", "gradients", "beyond torch, besides `backward`")

# Parameters that every loss has; size_average and reduce are torch's older names of reduction.
COMMON = {"size_average", "reduce", "reduction", "backward"}

# The operands of a loss over a linear head.
HEAD = {"input", "linear_weight", "target", "linear_bias"}

# Bits of `Loss.differentiable`, in the order of the operands.
GRADIENTS = (INPUT_GRADIENT, TARGET_GRADIENT, EXTRA_GRADIENT)

# Dtypes that torch may have no kernels for, and the shape of an input on which that shows.
HALVES = (torch.bfloat16, torch.float16)
TINY = (2, 3)


def table() -> str:
    """A line per loss: those with kernels first, then those that are torch's own."""
    cells = [_fused(loss) for loss in LOSSES.values()] + _over_heads() + _torchs_own()
    lines = [HEADINGS, ("---",) * len(HEADINGS), *cells]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{text}\n\n{_helpers()}"


def _code(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _fused(loss: Loss) -> tuple[str, ...]:
    parameters = inspect.signature(getattr(functional, loss.name)).parameters.values()
    operands = [p.name for p in parameters if p.default is inspect.Parameter.empty]
    others = COMMON.union(operands, loss.extensions)
    options = [p.name for p in parameters if p.name not in others]
    trained = [name for name, bit in zip(operands, GRADIENTS, strict=False) if loss.differentiable & bit]
    beyond = [f"`{name}`" for name in loss.extensions] if loss.has_twin else ["all of it"]
    beyond += [str(dtype).removeprefix("torch.") for dtype in HALVES if not _torch_takes(loss, dtype)]
    return (
        f"`{loss.name}`",
        f"`{loss.module}`",
        loss.family.replace("_", " "),
        _code(options),
        _code(trained),
        ", ".join(beyond),
    )


def _torch_takes(loss: Loss, dtype: torch.dtype) -> bool:
    """Whether torch has a kernel for this dtype on the CPU."""
    inputs = loss.inputs(TINY, Generator().manual_seed(0))
    try:
        cast = [t.to(dtype) if t.is_floating_point() else t for t in inputs]
        twin_of(loss.name)(*cast, reduction="sum")
    except NotImplementedError:
        return False
    return True


def _over_heads() -> list[tuple[str, ...]]:
    """Lines for losses over a linear head: the one that torch has, and any of the others."""
    parameters = inspect.signature(functional.linear_cross_entropy).parameters
    torchs_parameters = inspect.signature(torchs.linear_cross_entropy).parameters
    options = [name for name in torchs_parameters if name not in COMMON and name not in HEAD]
    beyond = [name for name in parameters if name not in torchs_parameters and name not in COMMON]
    gradients = _code(["input", "linear_weight", "linear_bias"])
    lines = [
        (_code([function]), _code([module]), "any, by chunks", _code(options), gradients, _code(beyond))
        for module, function in LINEAR.items()
    ]
    return [*lines, ("`linear_loss`", "", "any, by chunks", "the loss's", gradients, "all of it")]


def _torchs_own() -> list[tuple[str, ...]]:
    """Losses that are in this package so that an import can be replaced, and run as in torch."""
    functions = {
        name.replace("_", "").removesuffix("loss"): name
        for name in functional.__all__
        if getattr(functional, name) is getattr(torchs, name, None)
    }
    served = {loss.module for loss in LOSSES.values()} | set(LINEAR)
    lines: list[tuple[str, ...]] = []
    for module in (name for name in modules.__all__ if name not in served):
        assert getattr(fused_losses, module) is getattr(torch.nn, module)
        function = functions.pop(module.lower().removesuffix("loss"), None)
        name = f"`{function}`" if function else ""
        lines.append((name, f"`{module}`", "torch's own", "as in torch", "as in torch", ""))
    assert not functions, f"no module for {functions}"
    return lines


def _helpers() -> str:
    """A sentence about the functions that are no losses and that torch does not have."""
    distances = [name for name in functional.__all__ if name.endswith("_distance")]
    return (
        f"`triplet_margin_with_distance_loss` is fused with {_code(distances)} of "
        "`fused_losses.functional`, and with torch's pairwise distance."
    )

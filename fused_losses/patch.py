"""This package's losses in the place of torch's: in torch.nn (`patch`), or within one model (`replace`)."""

from __future__ import annotations

import copyreg
import importlib
import sys
from collections.abc import Iterable
from typing import Any, TypeVar

from torch import nn

from fused_losses import functional, modules, unpatched
from fused_losses.call import Backward
from fused_losses.losses.checks import check_backward
from fused_losses.registry import LINEAR, TWINS
from fused_losses.swaps import Patch, Swap, logger

Model = TypeVar("Model", bound=nn.Module)

# These tables are made at import, before any patch.
_REPLACEMENTS: dict[type[nn.Module], type[nn.Module]] = {
    getattr(nn, name): getattr(modules, name)
    for name in modules.__all__
    if getattr(nn, name, getattr(modules, name)) is not getattr(modules, name)
}
"""This package's classes by torch's."""

_TORCHS = {replacement.__name__: torchs for torchs, replacement in _REPLACEMENTS.items()}
"""Torch's classes by name."""


def _function_swaps(name: str) -> list[Swap]:
    """The swap of a function in torch.nn.functional; none if torch lacks it."""
    if not hasattr(unpatched, name):  # torch 2.11 has no linear_cross_entropy
        return []
    return [Swap(vars(nn.functional), name, getattr(functional, name), f"torch.nn.functional.{name}")]


def _module_swaps(name: str) -> list[Swap]:
    """The swaps of a class in the modules that have it; none if this package only passes it on."""
    torchs = _TORCHS.get(name)
    if torchs is None:
        return []
    homes = (nn, nn.modules, sys.modules[torchs.__module__])
    names = (f"torch.nn.{name}", None, None)
    replacement = _REPLACEMENTS[torchs]
    swaps = [Swap(vars(home), name, replacement, label) for home, label in zip(homes, names, strict=True)]
    # Pickle would look torch's class up by its name, under which there is another class now.
    return [*swaps, Swap(copyreg.dispatch_table, torchs, _reduce)]


def _reduce(module: nn.Module) -> tuple[Any, ...]:
    """What pickle stores of a module of torch: as `__reduce_ex__`, but the class is made by `_blank`."""
    return _blank, (type(module).__name__,), *module.__reduce_ex__(2)[2:]


def _blank(name: str) -> nn.Module:
    """A module of torch's own class, before its state is set."""
    return _TORCHS[name].__new__(_TORCHS[name])


_SWAPS: dict[str, list[Swap]] = {
    function: swaps
    for function, module in (
        *((loss.name, loss.module) for loss in TWINS.values()),
        *((function, module) for module, function in LINEAR.items()),
    )
    if (swaps := _function_swaps(function) + _module_swaps(module))
}


def patch(losses: Iterable[str] | None = None) -> Patch:
    """Puts the losses of this package in the place of those of torch.nn, for the whole process.

    Functions are replaced in torch.nn.functional, and classes in torch.nn and torch.nn.modules. Modules that
    exist already are served, too, since they look their function up when they are called. In effect at once,
    until `undo` or the end of the `with` block::

        with fused_losses.patch() as patched:
            train()
        patched = fused_losses.patch()
        train()
        patched.undo()

    What holds torch's functions already is not reached: a name that was imported beforehand by
    `from torch.nn.functional import cross_entropy`, and TorchScript.

    A module that torch.nn made before the patch is no instance of the class that `torch.nn.CrossEntropyLoss`
    names meanwhile; see :func:`replace`. The reverse holds: this package's modules are instances of torch's
    class. Modules made under the patch remain this package's, and are pickled as such. A
    `__torch_function__` is handed this package's function.

    All threads see the change at once. Patch and undo where no other thread is computing a loss.

    Args:
        losses: names as in torch.nn.functional; each stands for its module, too. All if None.

    Returns:
        A handle, which is a context manager: `replaced` lists the qualified names, `undo()` puts torch's
        back. The logger `fused_losses` tells both at level INFO.

    Raises:
        ValueError: a name that is no loss of this package.
        RuntimeError: something else has been put in the place of what an earlier patch put there.
    """
    names = tuple(_SWAPS) if losses is None else (losses,) if isinstance(losses, str) else tuple(losses)
    if unknown := [name for name in names if name not in _SWAPS]:
        raise ValueError(f"no such loss: {', '.join(map(repr, unknown))}; there are {', '.join(_SWAPS)}")
    # Dynamo looks torch's functions up when it is imported, which every optimizer does. Later, it would find
    # this package's in their place.
    importlib.import_module("torch._dynamo")
    return Patch(swap for name in dict.fromkeys(names) for swap in _SWAPS[name])


def replace(model: Model, *, backward: Backward | None = None) -> Model:
    """Turns the loss modules within a model, or a loss itself, from torch's into this package's.

    A module stays the object that it is, with its buffers, hooks and attributes; its class becomes this
    package's subclass of the one that it had. Only exact classes of torch.nn are replaced: a subclass may
    compute anything.

    Args:
        model: changed in place.
        backward: "fused", "recompute" or "inplace", for every module that is replaced.

    Returns:
        The model. The logger `fused_losses` tells the names of the modules at level INFO.

    Raises:
        ValueError: another `backward`.
    """
    if backward is not None:
        check_backward(backward)
    for name, module in model.named_modules():
        replacement: Any = _REPLACEMENTS.get(type(module))
        if replacement is None:
            continue
        module.__class__ = replacement
        if backward is not None:
            module.backward = backward
        logger.info("replaced %s (%s)", name or "the model itself", replacement.__name__)
    return model

"""This package's losses in torch's place: in torch.nn.functional (`patch`), or in one model (`replace`)."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any, TypeVar

from torch import nn

from fused_losses import functional, modules, unpatched
from fused_losses.call import Backward
from fused_losses.losses.checks import check_backward
from fused_losses.names import PatchedName
from fused_losses.registry import LINEAR, TWINS
from fused_losses.swaps import Attributes, Patch, Swap, logger

Model = TypeVar("Model", bound=nn.Module)

_REPLACEMENTS: dict[type[nn.Module], type[nn.Module]] = {
    getattr(nn, name): getattr(modules, name)
    for name in modules.__all__
    if getattr(nn, name, getattr(modules, name)) is not getattr(modules, name)
}
"""This package's classes by torch's."""


def _swaps(name: str) -> tuple[Swap, Swap]:
    """What a patch of that function changes: the function, and the module in which pickle finds torch's.

    Whoever holds torch's function may pickle it, by its name, under which there is another one meanwhile.
    """
    return (
        Swap(vars(nn.functional), name, getattr(functional, name), f"torch.nn.functional.{name}"),
        Swap(Attributes(getattr(unpatched, name)), "__module__", unpatched.__name__),
    )


_SWAPS: dict[str, tuple[Swap, Swap]] = {
    name: _swaps(name)
    for name in (*TWINS, *LINEAR.values())
    if hasattr(unpatched, name)  # torch 2.11 has no linear_cross_entropy
}


def patch(losses: PatchedName | Iterable[PatchedName] | None = None) -> Patch:
    """Puts the losses of this package in the place of those of torch.nn.functional, for the whole process.

    Torch's modules, those that exist already and subclasses too, look their function up there when they are
    called. In effect at once, until `undo` or the end of the `with` block::

        with fused_losses.patch() as patched:
            train()
        patched = fused_losses.patch()
        train()
        patched.undo()

    Nothing else changes: torch's classes stay what they are. What holds torch's functions already is not
    reached: a name that was imported beforehand by `from torch.nn.functional import cross_entropy`, a default
    argument, compiled TorchScript. A `__torch_function__`, torch.jit and torch.fx are given torch's function.

    All threads see the change at once. Patch and undo where no other thread is computing a loss.

    Args:
        losses: names as in torch.nn.functional, or one name. All if None.

    Returns:
        A handle, which is a context manager: `replaced` lists the qualified names, `undo()` puts torch's
        back. The logger `fused_losses` tells both at level INFO.

    Raises:
        ValueError: a name that is no loss of this package.
        RuntimeError: something else has been put in the place of what an earlier patch put there.

    Example:
        >>> with fused_losses.patch("mse_loss") as patched:
        ...     patched.replaced
        ('torch.nn.functional.mse_loss',)
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
        backward: "fused", "recompute" or "inplace", for every module that is replaced; each function of
            `fused_losses.functional` says what it means. Losses over a linear head have no "inplace".

    Returns:
        The model. The logger `fused_losses` tells the names of the modules at level INFO.

    Raises:
        ValueError: another `backward`.

    Example:
        >>> model = torch.nn.ModuleDict({"layer": torch.nn.Linear(2, 2), "loss": torch.nn.MSELoss()})
        >>> isinstance(fused_losses.replace(model)["loss"], fused_losses.MSELoss)
        True
    """
    if backward is not None:
        check_backward(backward)
    for name, module in model.named_modules():
        replacement: Any = _REPLACEMENTS.get(type(module))
        if replacement is None:
            continue
        module.__class__ = replacement
        module.fused_options = {**replacement.fused_options}
        if backward is not None:
            module.fused_options["backward"] = backward
        logger.info("replaced %s (%s)", name or "the model itself", replacement.__name__)
    return model

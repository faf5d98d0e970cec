"""The base class of the loss modules, which makes a module's forward of a function."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from fused_losses.call import Backward


class FusedModule(nn.Module):
    """Gives a subclass a forward that hands its attributes to `function`.

    The subclass derives from the loss of torch.nn, too, if there is one, whose operands' names it keeps.
    """

    # A default on the class, as are those of extensions: modules that torch.nn has pickled have no such
    # attribute.
    backward: Backward = "fused"

    def __init_subclass__(cls, function: Callable[..., Any] | None = None, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if function is None:  # a user's subclass, which has its forward already
            return
        parent: Any = cls.__mro__[2]
        taken = inspect.signature(cls).parameters.keys() & inspect.signature(function).parameters.keys()
        # The constructor has turned these two into `reduction`.
        options = tuple(sorted(taken - {"size_average", "reduce"}))

        named_by = function if parent is nn.Module else parent.forward
        parameters = inspect.signature(named_by).parameters.values()
        tensors = [p for p in parameters if p.default is p.empty and p.name != "self"]
        names = tuple(p.name for p in tensors)

        @functools.wraps(named_by)
        def forward(self: nn.Module, *operands: Tensor, **named: Any) -> Any:
            # Operands go by position, since some functions have other names for them than modules.
            operands += tuple(named.pop(name) for name in names[len(operands) :] if name in named)
            return function(*operands, **named, **{option: getattr(self, option) for option in options})

        if parent is nn.Module:
            this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
            forward.__signature__ = inspect.Signature([this, *tensors])  # type: ignore[attr-defined]
        cls.forward = forward
        cls.__doc__ = (
            f"{cls.__doc__}\n\nOptions go to the constructor, tensors to the call. "
            "Formula, shapes, dtypes and errors are the function's."
        )

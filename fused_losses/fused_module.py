"""The base class of the loss modules, which makes a module's forward of a function."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

# TorchScript compiles the text of torch's forward, and looks for what that names in this module.
from fused_losses import unpatched as F  # noqa: F401


class FusedModule(nn.Module):
    """Gives a subclass a forward that calls `function` with the module's options.

    The subclass derives from the loss of torch.nn, too, if there is one: its forward has the same signature,
    and what `per_call` names may be given to it by keyword. Without torch's, `attributes` names the options
    that are attributes of the module, as tensors are that move with it.
    """

    if TYPE_CHECKING:  # TorchScript reads the annotations of a class, and does not know these types
        fused_options: Mapping[str, Any]
        """The function's options that torch.nn's module does not have, by name: the class has the defaults,
        the constructor gives an instance its own. They are no attributes of their own, since a user's
        subclass may have attributes by such names that mean something else."""
        _defaults: Mapping[str, Any]
        """The class's `fused_options`."""

        def __call__(self, *operands: Tensor, **named: Tensor) -> Tensor:
            """The loss, given torch's operands."""

    def __init_subclass__(
        cls,
        function: Callable[..., Any] | None = None,
        per_call: tuple[str, ...] = (),
        attributes: tuple[str, ...] = (),
        **keywords: Any,
    ) -> None:
        super().__init_subclass__(**keywords)
        if function is None:  # a user's subclass, which has its forward already
            return
        torchs: Any = cls.__mro__[2] if cls.__mro__[2] is not nn.Module else None
        parameters = inspect.signature(function).parameters.values()
        taken = () if torchs is None else inspect.signature(torchs).parameters
        # The constructor has turned `size_average` and `reduce` into `reduction`.
        own = attributes + tuple(
            p.name for p in parameters if p.name in taken and p.name not in ("size_average", "reduce")
        )
        cls.fused_options = cls._defaults = MappingProxyType(
            {
                p.name: p.default
                for p in parameters
                if p.default is not p.empty
                and (p.kind is p.KEYWORD_ONLY or torchs is None)
                and p.name not in (*own, *per_call)
            }
        )
        named_by = function if torchs is None else torchs.forward
        operands = [p for p in inspect.signature(named_by).parameters.values() if p.default is p.empty]
        if torchs is None:
            operands.insert(0, inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD))
        further = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in per_call]
        signature = inspect.Signature([*operands, *further])
        count = len(operands) - 1

        @functools.wraps(named_by)
        def forward(self: FusedModule, *operands: Tensor, **named: Any) -> Any:
            if named or len(operands) != count:
                try:
                    bound = signature.bind(self, *operands, **named)
                except TypeError:
                    if torchs is None:
                        raise
                    return torchs.forward(self, *operands, **named)  # which raises it in torch's words
                # Operands go by position, since some functions have other names for them than modules.
                operands, named = bound.args[1:], bound.kwargs
            options = {name: getattr(self, name) for name in own}
            return function(*operands, **named, **options, **self.fused_options)

        if torchs is None:
            forward.__signature__ = signature  # type: ignore[attr-defined]
        cls.forward = forward
        described, heading, example = inspect.cleandoc(cls.__doc__ or "").partition("\n\nExample:\n")
        cls.__doc__ = (
            f"{described}\n\nOptions go to the constructor, tensors to the call. Formula, shapes, dtypes "
            "and errors are the function's. Options that torch.nn's module lacks are in `fused_options`."
            f"{heading}{example}"
        )

    def __prepare_scriptable__(self) -> FusedModule:
        """What torch.jit.script compiles: this module, by the text of torch's forward.

        Raises:
            RuntimeError: an option that torch's forward lacks, and that changes results.
        """
        for name, value in self.fused_options.items():
            if name != "backward" and value != self._defaults[name]:
                raise RuntimeError(
                    f"torch.jit.script cannot compile {type(self).__name__} with {name}={value!r}"
                )
        return self

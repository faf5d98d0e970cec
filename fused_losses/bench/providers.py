"""Who is measured: torch's own function, the same compiled, and each strategy of this package."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as eager

from fused_losses import functional as fused_losses

LossFn = Callable[..., Tensor]

EAGER = "eager"
COMPILE = "compile"
BASELINES = (EAGER, COMPILE)


def _eager(loss: str) -> LossFn:
    function: LossFn = getattr(eager, loss)
    return function


def _compiled(loss: str) -> LossFn:
    """torch.compile of the eager function, specialised to the shape it is called with."""
    # What was compiled for other cases counts against dynamo's limit of recompilations.
    torch.compiler.reset()
    function = _eager(loss)

    def call(*inputs: Tensor) -> Tensor:
        return function(*inputs)

    return torch.compile(call, fullgraph=True, dynamic=False)


def _strategy(backward: str, loss: str) -> LossFn:
    function: LossFn = getattr(fused_losses, loss)
    return functools.partial(function, backward=backward)


# From the name of a loss to a function of its inputs, reduction "mean".
PROVIDERS: dict[str, Callable[[str], LossFn]] = {
    EAGER: _eager,
    COMPILE: _compiled,
    "fused": functools.partial(_strategy, "fused"),
    "recompute": functools.partial(_strategy, "recompute"),
    "inplace": functools.partial(_strategy, "inplace"),
}

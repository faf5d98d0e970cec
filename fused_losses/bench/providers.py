"""Who is measured: torch's own function, the same compiled, and each strategy of this package."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as torchs

from fused_losses import functional as ours
from fused_losses.bench.cases import Case

LossFn = Callable[..., Tensor]

EAGER = "eager"
COMPILE = "compile"
BASELINES = (EAGER, COMPILE)


def eager(case: Case) -> LossFn:
    """Torch's own function, of the inputs alone."""
    function: LossFn = getattr(torchs, case.loss)
    return functools.partial(function, **case.keywords) if case.keywords else function


def _compiled(case: Case) -> LossFn:
    """torch.compile of the eager function, specialised to the shape it is called with.

    A graph may break: gaussian_nll_loss looks at the values of its variances.
    """
    # What was compiled for other cases counts against dynamo's limit of recompilations.
    torch.compiler.reset()
    function: LossFn = getattr(torchs, case.loss)
    keywords = case.keywords

    def call(*inputs: Tensor) -> Tensor:
        return function(*inputs, **keywords)

    return torch.compile(call, dynamic=False)


def _strategy(backward: str, case: Case) -> LossFn:
    function: LossFn = getattr(ours, case.loss)
    return functools.partial(function, backward=backward, **case.keywords)


# From a case to a function of its inputs.
PROVIDERS: dict[str, Callable[[Case], LossFn]] = {
    EAGER: eager,
    COMPILE: _compiled,
    "fused": functools.partial(_strategy, "fused"),
    "recompute": functools.partial(_strategy, "recompute"),
    "inplace": functools.partial(_strategy, "inplace"),
}

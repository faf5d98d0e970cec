"""Who is measured: torch's own function, the same compiled, each strategy of this package, and its peers."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as torchs

from fused_losses import backends, devices
from fused_losses import functional as ours
from fused_losses.bench.cases import Case
from fused_losses.bench.heads import HEADS
from fused_losses.registry import LOSSES

LossFn = Callable[..., Tensor]

EAGER = "eager"
COMPILE = "compile"

PRODUCTS = "three matrix products"
"""No provider, but the floor of losses behind a linear layer; named here, as it has rows of its own."""

# What a provider's status begins with if it cannot run here at all.
UNAVAILABLE = "unavailable: "


class Unavailable(Exception):
    """A provider cannot run here; the message says why."""


@dataclass(frozen=True)
class Provider:
    """From a case to a function of its inputs.

    Attributes:
        make: returns the function, or raises `Unavailable`.
        losses: those that it has.
        is_ours: whether it must be accurate to be timed; what others get wrong is what their users have.
        backend: which kernels of ours, as in `fused_losses.backend`; None: those that serve by themselves.
        backward: of ours, which strategy; None: what is the usual one.
    """

    make: Callable[[Case], LossFn]
    losses: frozenset[str]
    is_ours: bool = False
    backend: str | None = None
    backward: str | None = None

    @contextmanager
    def kernels(self, device: str) -> Iterator[str]:
        """Within it, the provider's kernels serve a device; what they are called, or nothing if not ours.

        Raises:
            Unavailable: others serve it, or none.
        """
        if self.backend is None:
            yield (devices.kernels_for(device) or "torch") if self.is_ours else ""
            return
        if self.backend == "triton" and not backends.has_triton():
            raise Unavailable("Triton is not installed")
        with backends.backend(self.backend):
            serving = devices.kernels_for(device) or "torch"
            # The CPU's compiled kernels stand for CUDA's where a run on a GPU is rehearsed without one.
            wanted = ("Triton",) if self.backend == "triton" else (devices.CUDA, "C++")
            if not serving.startswith(wanted):
                raise Unavailable(f"{device} is served by {serving}")
            yield serving


def eager(case: Case) -> LossFn:
    """Torch's own function, of the inputs alone."""
    if case.head is not None:
        return case.head.unfused
    return _of_inputs(case, case.options.composed or getattr(torchs, case.loss))


def _of_inputs(case: Case, function: LossFn, **keywords: Any) -> LossFn:
    """The function with all else that it is called with; the last of the inputs may be keywords, too."""
    keywords = {**case.keywords, **keywords}
    names = case.options.per_class
    if not names:
        return functools.partial(function, **keywords) if keywords else function

    def call(*inputs: Tensor) -> Tensor:
        operands, factors = inputs[: -len(names)], inputs[-len(names) :]
        return function(*operands, **dict(zip(names, factors, strict=True)), **keywords)

    return call


def _compiled(case: Case) -> LossFn:
    """torch.compile of the eager function, specialised to the shape it is called with.

    A graph may break: gaussian_nll_loss looks at the values of its variances.
    """
    # What was compiled for other cases counts against dynamo's limit of recompilations.
    torch.compiler.reset()
    function = eager(case)

    def call(*inputs: Tensor) -> Tensor:
        return function(*inputs)

    return torch.compile(call, dynamic=False)


def _strategy(backward: str, case: Case) -> LossFn:
    """Ours; behind a linear layer, the layer is torch's."""
    if case.head is None:
        return _of_inputs(case, getattr(ours, case.loss), backward=backward)
    loss: LossFn = functools.partial(getattr(ours, case.head.loss), backward=backward)

    def call(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        return loss(torchs.linear(hidden, weight), target)

    return call


def _linear(case: Case) -> LossFn:
    """Ours, layer and loss in one."""
    function = getattr(ours, case.loss, None)
    if function is None or function is getattr(torchs, case.loss, None):
        raise Unavailable("not in this version of fused_losses")
    return functools.partial(function, **case.keywords)


def _torchs_linear(chunked: bool, case: Case) -> LossFn:
    """Torch's function of layer and loss: its reference implementation, or the one in chunks of rows."""
    function = getattr(torchs, case.loss, None)
    if function is None:
        raise Unavailable(f"torch {torch.__version__} does not have it")
    options = torch.nn.LinearCrossEntropyOptions() if chunked else None
    return functools.partial(function, options=options)


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        own = missing == name.partition(".")[0]
        raise Unavailable("not installed" if own else f"needs the package {missing}") from error
    except Exception as error:
        # Peers read the system when they are imported, and raise what they like.
        raise Unavailable(f"cannot be imported: {error}") from error


def _liger(case: Case) -> LossFn:
    """Liger-Kernel: cross-entropy alone, or with the layer, in Triton."""
    package = _package("liger_kernel.transformers.functional")
    if case.device == "cpu":
        raise Unavailable("needs a GPU")
    if case.head is None:
        function: LossFn = package.liger_cross_entropy
    else:
        function = package.liger_fused_linear_cross_entropy
    return _in_dtype_of_input(function)


def _cut(case: Case) -> LossFn:
    """cut-cross-entropy: in Triton; without a GPU, what it has torch.compile make."""
    package = _package("cut_cross_entropy")
    implementation = "torch_compile" if case.device == "cpu" else "cce"
    # Each is compiled by itself; see `_compiled`.
    torch.compiler.reset()
    return _in_dtype_of_input(functools.partial(package.linear_cross_entropy, impl=implementation))


def _in_dtype_of_input(function: LossFn) -> LossFn:
    """Losses of peers are in float32; all are compared in the dtype that torch's have."""

    def call(*inputs: Tensor) -> Tensor:
        return function(*inputs).to(inputs[0].dtype)

    return call


_ALL = frozenset({*LOSSES, *HEADS})
_HEADS = frozenset(HEADS)
_CROSS_ENTROPY = frozenset({"linear_cross_entropy"})

# What is put before a strategy to name the kernels: all three over CUDA C++, and all three over Triton.
BACKENDS = {"cuda": "compiled", "triton": "triton"}
STRATEGIES = ("fused", "recompute", "inplace")


def _over_backends() -> dict[str, Provider]:
    """Every strategy, and layer and loss in one, over each set of kernels for GPUs."""
    return {
        f"{name} {strategy}": Provider(
            functools.partial(_strategy, strategy), _ALL, is_ours=True, backend=backend, backward=strategy
        )
        for name, backend in BACKENDS.items()
        for strategy in STRATEGIES
    } | {
        f"{name} linear": Provider(_linear, _HEADS, is_ours=True, backend=backend)
        for name, backend in BACKENDS.items()
    }


PROVIDERS = {
    EAGER: Provider(eager, _ALL),
    COMPILE: Provider(_compiled, _ALL),
    **{
        strategy: Provider(functools.partial(_strategy, strategy), _ALL, is_ours=True, backward=strategy)
        for strategy in STRATEGIES
    },
    "linear": Provider(_linear, _HEADS, is_ours=True),
    "torch reference": Provider(functools.partial(_torchs_linear, False), _CROSS_ENTROPY),
    "torch chunked": Provider(functools.partial(_torchs_linear, True), _CROSS_ENTROPY),
    "liger": Provider(_liger, _CROSS_ENTROPY | {"cross_entropy"}),
    "cut-cross-entropy": Provider(_cut, _CROSS_ENTROPY),
    **_over_backends(),
}

BY_DEVICE = [name for name, provider in PROVIDERS.items() if provider.backend is None]
"""Those that run with whatever kernels serve a device; the others are of runs on a GPU."""

OURS = [name for name, provider in PROVIDERS.items() if provider.is_ours]
BASELINES = [name for name in PROVIDERS if name not in OURS]

OF_LOSSES = [EAGER, COMPILE, "fused", "recompute", "inplace"]
"""Those that a run of the registry's losses measures if not told otherwise."""

OF_HEADS = [name for name in BY_DEVICE if name not in ("fused", "recompute")]
"""The same of losses behind a linear layer; of ours with torch's layer, the one with the least memory."""

PEERS = ["liger", "cut-cross-entropy"]
"""Other packages; most need a GPU."""


def serving(case: Case, names: list[str]) -> list[str]:
    """Of these providers, those that have the loss of a case."""
    return [name for name in names if case.loss in PROVIDERS[name].losses]

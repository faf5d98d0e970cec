"""The providers of losses: torch, eager and compiled, the strategies of this package, and its peers."""

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

from fused_losses import backends, devices, functional
from fused_losses.bench.cases import Case
from fused_losses.bench.heads import HEADS
from fused_losses.bench.variants import USUAL
from fused_losses.losses.twins import twin_of
from fused_losses.names import BackendName
from fused_losses.registry import LOSSES

LossFn = Callable[..., Tensor]

EAGER = "eager"
COMPILE = "compile"

PRODUCTS = "three matrix products"
"""The floor of losses behind a linear layer. It is no provider, but has rows of its own."""

# How a provider's status begins if it cannot run here at all.
UNAVAILABLE = "unavailable: "


class Unavailable(Exception):
    """A provider cannot run here; the message says why."""


@dataclass(frozen=True)
class Provider:
    """Something that computes losses.

    Attributes:
        make: makes a function of a case's inputs, or raises `Unavailable`.
        losses: the names of the losses that it has.
        is_own: whether it is of this package, and must be accurate to be timed; what others get wrong is what
            their users have.
        backend: which kernels of this package run, as in `fused_losses.backend`; None for those that serve
            the device.
        backward: the strategy of this package that runs; None for the default.
    """

    make: Callable[[Case], LossFn]
    losses: frozenset[str]
    is_own: bool = False
    backend: BackendName | None = None
    backward: str | None = None

    @contextmanager
    def kernels(self, device: str) -> Iterator[str]:
        """Lets the provider's kernels serve a device within the `with` block, and yields their name.

        The name is empty for providers that are not of this package.

        Raises:
            Unavailable: other kernels serve the device, or none.
        """
        if self.backend is None:
            yield (devices.kernels_for(device) or "torch") if self.is_own else ""
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
    """Torch's own function, as a function of the inputs alone."""
    if case.head is not None:
        return case.head.unfused
    return _with_keywords(case, case.options.composed or twin_of(case.loss))


def _with_keywords(case: Case, function: LossFn, **keywords: Any) -> LossFn:
    """A function of the case's inputs alone; the last of these are keywords where classes have factors."""
    keywords = {**case.keywords, **keywords}
    names, finish = case.options.per_class, case.options.finish
    if not names and not finish:
        return functools.partial(function, **keywords) if keywords else function

    def call(*inputs: Tensor) -> Tensor:
        count = len(inputs) - len(names)
        loss = function(*inputs[:count], **dict(zip(names, inputs[count:], strict=True)), **keywords)
        return finish(loss) if finish else loss

    return call


def _compiled(case: Case) -> LossFn:
    """torch.compile of the eager function, specialised to the shape it is called with.

    A graph may break: gaussian_nll_loss looks at the values of its variances.
    """
    # Functions compiled for other cases count against dynamo's limit of recompilations.
    torch.compiler.reset()
    function = eager(case)

    def call(*inputs: Tensor) -> Tensor:
        return function(*inputs)

    return torch.compile(call, dynamic=False)


def _strategy(backward: str, case: Case) -> LossFn:
    """This package's loss; behind a linear layer, the layer is torch's."""
    if case.head is None:
        return _with_keywords(case, getattr(functional, case.loss), backward=backward)
    loss: LossFn = functools.partial(getattr(functional, case.head.loss), backward=backward)

    def call(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        return loss(torchs.linear(hidden, weight), target)

    return call


def _linear(case: Case) -> LossFn:
    """This package's function of layer and loss in one."""
    function = getattr(functional, case.loss, None)
    if function is None or function is getattr(torchs, case.loss, None):
        raise Unavailable("not in this version of fused_losses")
    return functools.partial(function, **case.keywords)


def _torchs_linear(chunked: bool, case: Case) -> LossFn:
    """Torch's function of layer and loss in one: the reference implementation, or the one in chunks."""
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
        # Peers look at the system when they are imported, and may raise anything.
        raise Unavailable(f"cannot be imported: {error}") from error


def _liger(case: Case) -> LossFn:
    """Liger-Kernel: cross-entropy alone, or with the layer, in Triton."""
    package = _package("liger_kernel.transformers.functional")
    if case.device == "cpu":
        raise Unavailable("needs a GPU")
    if case.head is None:
        if len(case.shape) > 2:
            raise Unavailable("takes logits (N, C) only")
        function: LossFn = package.liger_cross_entropy
    else:
        function = package.liger_fused_linear_cross_entropy
    return _in_dtype_of_input(function)


def _cut(case: Case) -> LossFn:
    """cut-cross-entropy: its kernels in Triton; without a GPU, its implementation by torch.compile."""
    package = _package("cut_cross_entropy")
    implementation = "torch_compile" if case.device == "cpu" else "cce"
    # For the same reason as in `_compiled`.
    torch.compiler.reset()
    return _in_dtype_of_input(functools.partial(package.linear_cross_entropy, impl=implementation))


def _in_dtype_of_input(function: LossFn) -> LossFn:
    """The function with its loss in the input's dtype, as torch's; peers return float32."""

    def call(*inputs: Tensor) -> Tensor:
        return function(*inputs).to(inputs[0].dtype)

    return call


_ALL = frozenset({*LOSSES, *HEADS})
_HEADS = frozenset(HEADS)
_CROSS_ENTROPY = frozenset({"linear_cross_entropy"})

# Kernels for GPUs, by the word that a provider's name has before the strategy.
BACKENDS: dict[str, BackendName] = {"cuda": "compiled", "triton": "triton"}
STRATEGIES = ("fused", "recompute", "inplace")


def _over_backends() -> dict[str, Provider]:
    """Providers for every strategy, and for layer and loss in one, over each set of kernels for GPUs."""
    return {
        f"{name} {strategy}": Provider(
            functools.partial(_strategy, strategy), _ALL, is_own=True, backend=backend, backward=strategy
        )
        for name, backend in BACKENDS.items()
        for strategy in STRATEGIES
    } | {
        f"{name} linear": Provider(_linear, _HEADS, is_own=True, backend=backend)
        for name, backend in BACKENDS.items()
    }


PROVIDERS = {
    EAGER: Provider(eager, _ALL),
    COMPILE: Provider(_compiled, _ALL),
    **{
        strategy: Provider(functools.partial(_strategy, strategy), _ALL, is_own=True, backward=strategy)
        for strategy in STRATEGIES
    },
    "linear": Provider(_linear, _HEADS, is_own=True),
    "torch reference": Provider(functools.partial(_torchs_linear, False), _CROSS_ENTROPY),
    "torch chunked": Provider(functools.partial(_torchs_linear, True), _CROSS_ENTROPY),
    "liger": Provider(_liger, _CROSS_ENTROPY | {"cross_entropy"}),
    "cut-cross-entropy": Provider(_cut, _CROSS_ENTROPY),
    **_over_backends(),
}

BY_DEVICE = [name for name, provider in PROVIDERS.items() if provider.backend is None]
"""Providers that run with whatever kernels serve a device; the others are for runs on a GPU."""

OWN = [name for name, provider in PROVIDERS.items() if provider.is_own]
"""Providers of this package."""

LOSS_PROVIDERS = [EAGER, COMPILE, "fused", "recompute", "inplace"]
"""Providers that a run measures on the registry's losses by default."""

HEAD_PROVIDERS = [name for name in BY_DEVICE if name not in ("fused", "recompute")]
"""Providers that a run measures on losses behind a linear layer by default.

Of this package's strategies with torch's layer, only the one that needs the least memory is among them.
"""

PEERS = ["liger", "cut-cross-entropy"]
"""Other packages; most need a GPU."""


def serving(case: Case, names: list[str]) -> list[str]:
    """The providers, among these, that have the loss of a case, called as it is there.

    Peers have other names for options, and a slice cannot be overwritten by its gradient.
    """
    if case.variant != USUAL:
        names = [name for name in names if name not in PEERS]
    if case.variant == "slice":
        names = [name for name in names if PROVIDERS[name].backward != "inplace"]
    return [name for name in names if case.loss in PROVIDERS[name].losses]

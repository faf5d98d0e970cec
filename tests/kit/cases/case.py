"""One call of a loss, the numbers that calls are made of, and ways for them to lie in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

import fused_losses.functional as L
from fused_losses.registry import LOSSES
from kit.device import there
from kit.tolerance import eager_of, operands_of


@dataclass
class Case:
    """One call of a loss: its operands in torch's order, and the rest of its arguments."""

    label: str
    name: str
    operands: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def ours(self) -> Callable[..., Tensor]:
        return there(getattr(L, self.name))

    @property
    def torchs(self) -> Callable[..., Tensor]:
        return eager_of(self.name)

    @property
    def reductions(self) -> tuple[str, ...]:
        return ("mean", "sum", "none", "batchmean") if self.name == "kl_div" else ("mean", "sum", "none")

    def sample(self, **options: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments and keywords: new leaves, of which those that torch differentiates require grad."""
        return operands_of(self.name, self.operands), {**self.options, **options}

    def cast(self, dtype: torch.dtype) -> Case:
        """The same values, rounded to `dtype` (class indices stay)."""

        def cast(value: Any) -> Any:
            return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

        operands, options = tree_map(cast, (self.operands, self.options))
        return Case(self.label, self.name, operands, options)

    def __str__(self) -> str:
        return f"{self.name}-{self.label}"


def inputs_of(name: str, *shape: int, seed: int = 0) -> tuple[Tensor, ...]:
    """Operands as in training, in float64."""
    inputs = LOSSES[name].inputs(shape, _generator(seed))
    return tuple(x.double() if x.is_floating_point() else x for x in inputs)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=_generator(seed), dtype=torch.float64)


def uniform(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=_generator(seed), dtype=torch.float64)


def integers(low: int, high: int, *shape: int, seed: int = 2) -> Tensor:
    return torch.randint(low, high, shape, generator=_generator(seed))


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def shape_name(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def option_name(options: dict[str, Any]) -> str:
    """`options` as the end of a label."""

    def name(value: Any) -> str:
        return str(value).split(" at ")[0] if not isinstance(value, Tensor) else "tensor"

    return "".join(f"-{key}={name(value)}" for key, value in options.items())


def layouts(tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The same values lying otherwise in memory."""
    yield "misaligned", torch.cat([tensor.new_zeros(1), tensor.reshape(-1)])[1:].view(tensor.shape)
    if tensor.dim() >= 2:
        yield "transposed", tensor.transpose(0, 1).contiguous().transpose(0, 1)
        wide = tensor.new_zeros(*tensor.shape[:-1], tensor.shape[-1] * 2 + 3)
        wide[..., 1 : 1 + 2 * tensor.shape[-1] : 2] = tensor
        yield "strided", wide[..., 1 : 1 + 2 * tensor.shape[-1] : 2]
        padded = tensor.new_zeros(*tensor.shape[:-1], tensor.shape[-1] + 3)
        padded[..., : tensor.shape[-1]] = tensor
        yield "padded", padded[..., : tensor.shape[-1]]
    if tensor.dim() == 4:
        yield "channels_last", tensor.contiguous(memory_format=torch.channels_last)
        yield "sides_swapped", tensor.transpose(2, 3).contiguous().transpose(2, 3)

"""Right calls of every operator: the arguments that `values` makes wrong, one at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fused_losses.ops import OPERATORS
from fused_losses.registry import EXTRA_GRADIENT, LOSSES

KINDS = ("forward", "forward_inplace", "backward", "backward_into")

Arguments = dict[str, Any]

NONE, MEAN, SUM, BATCH_MEAN = range(4)

ROWS, COLUMNS = 6, 10
MANY_CLASSES = 100
"""More classes than the engine of short rows takes: cross-entropy has another one for long rows."""


@dataclass(frozen=True)
class Base:
    """A right call of one operator of a loss."""

    name: str
    kind: str
    reduction: int = MEAN
    probabilities: bool = False
    """Whether the target of cross_entropy are probabilities, (N, C), instead of class indices, (N)."""

    def __str__(self) -> str:
        target = "-probabilities" if self.probabilities else ""
        return f"{self.name}-{self.kind}{target}-{('none', 'mean')[self.reduction]}"

    @property
    def family(self) -> str:
        return LOSSES[self.name].family

    @property
    def needs_extra(self) -> bool:
        """Whether the loss has a third operand that must be there."""
        return self.family == "vectors" or bool(LOSSES[self.name].differentiable & EXTRA_GRADIENT)

    @property
    def operator(self) -> Any:
        return getattr(OPERATORS[self.name], self.kind)

    def arguments(self) -> Arguments:
        """New tensors of the same values at every call, by the names of the operator's schema."""
        made = self._operands() | self._options()
        made["reduction"] = self.reduction
        if self.kind in ("forward", "forward_inplace"):
            made["dtype"] = None
        made["gradients"] = self._bits()
        if self.kind in ("backward", "backward_into"):
            one = torch.tensor(0.5) if self.reduction else _numbers(1, *self._loss_shape())
            made = {"upstream": one} | made
        if self.kind == "backward_into":
            into = [torch.full((ROWS, self._columns()), 7.0) for _ in range(made["gradients"].bit_count())]
            made = {"into": into, "ready": False} | made
        names = [argument.name for argument in self.operator._schema.arguments]
        assert sorted(names) == sorted(made)
        return {name: made[name] for name in names}

    def candidates(self, arguments: Arguments) -> Arguments:
        """Tensors for the arguments that are None in a right call, such as one might expect there."""
        largest, sums = arguments["input"].max(1).values, arguments["input"].exp().sum(1)
        statistics = torch.stack([largest, sums / largest.exp()])
        columns = (self._columns(),) if self.family in ("softmax", "class_margin") else (ROWS, COLUMNS)
        return {
            "weight": _numbers(2, *columns),
            "extra": statistics if self.family == "softmax" else _numbers(3, ROWS, COLUMNS),
            "normalizer": torch.tensor(3.0, dtype=torch.float64),
            "lse_gradient": _numbers(4, ROWS),
        }

    def _columns(self) -> int:
        return MANY_CLASSES if self.family == "softmax" else COLUMNS

    def _loss_shape(self) -> tuple[int, ...]:
        return (ROWS, COLUMNS) if self.family == "pointwise" else (ROWS,)

    def _operands(self) -> Arguments:
        numbers = [x.clone() for x in _numbers(0, 3, ROWS, self._columns())]
        labels = torch.arange(ROWS)
        lists = torch.arange(ROWS * COLUMNS).view(ROWS, COLUMNS) % (COLUMNS + 1) - 1
        target: Tensor = {
            "softmax": numbers[1] if self.probabilities else labels,
            "class_margin": lists if self.name == "multilabel_margin_loss" else labels,
        }.get(self.family, numbers[1])
        extra = numbers[2] if self.needs_extra else None
        if self.name == "cosine_embedding_loss":
            extra = torch.ones(ROWS, 1)
            extra[::2] = -1
        return {"input": numbers[0], "target": target, "weight": None, "extra": extra}

    def _options(self) -> Arguments:
        if self.family == "softmax":
            return {
                "ignore_index": -100,
                "label_smoothing": 0.0,
                "terms": [],
                "normalizer": None,
                "lse_gradient": None,
            }
        parameters = [float(number) for number in LOSSES[self.name].parameters.values()]
        if self.family == "pointwise":
            return {"parameters": parameters, "ignore_index": None, "normalizer": None}
        return {"parameters": parameters}

    def _bits(self) -> int:
        bits = LOSSES[self.name].differentiable
        return bits & ~2 if self.name == "cross_entropy" and not self.probabilities else bits


@dataclass(frozen=True)
class OtherBase:
    """A right call of an operator that is no loss."""

    name: str
    kind: str = "other"
    family: str = "other"
    reduction: int = MEAN
    probabilities: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def operator(self) -> Any:
        return getattr(torch.ops.fused_losses, self.name).default

    def arguments(self) -> Arguments:
        """New tensors of the same values at every call."""
        if self.name == "scale_":
            return {"gradient": _numbers(0, ROWS, COLUMNS), "factor": torch.tensor(0.5)}
        return {"bytes": 2**20} if self.name == "set_cache_limit" else {}

    def candidates(self, arguments: Arguments) -> Arguments:
        """None of the arguments is optional."""
        return {}


OTHERS = ("scale_", "cached_bytes", "empty_cache", "set_cache_limit")


def _numbers(seed: int, *shape: int) -> Tensor:
    """Numbers that every loss takes, as probabilities, variances or elements of vectors."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)).mul_(0.9).add_(0.05)


def bases(name: str) -> list[Base]:
    """The right calls of a loss's four operators."""
    targets = (False, True) if name == "cross_entropy" else (False,)
    return [
        Base(name, kind, reduction, probabilities)
        for kind in KINDS
        for reduction in (MEAN, NONE)
        for probabilities in targets
    ]

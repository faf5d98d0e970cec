"""Inputs that the tests share: every loss, on shapes, layouts and values that break careless kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fused_losses.functional as L

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass
class Case:
    """One call of a loss: `input` and `target`, and the rest of its arguments."""

    label: str
    name: str
    input: Tensor
    target: Tensor
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def ours(self) -> Callable[..., Tensor]:
        return getattr(L, self.name)

    @property
    def torchs(self) -> Callable[..., Tensor]:
        return getattr(F, self.name)

    def cast(self, dtype: torch.dtype) -> Case:
        """The same values, rounded to `dtype` (class indices stay)."""

        def cast(value: Any) -> Any:
            return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

        options = {key: cast(value) for key, value in self.options.items()}
        return Case(self.label, self.name, cast(self.input), cast(self.target), options)

    def __str__(self) -> str:
        return f"{self.name}-{self.label}"


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=_generator(seed), dtype=torch.float64)


def _uniform(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=_generator(seed), dtype=torch.float64)


def _labels(shape: tuple[int, ...], ignore_every: int = 5) -> Tensor:
    positions = shape[:1] + shape[2:] if len(shape) > 1 else ()
    labels = torch.randint(0, shape[1 if len(shape) > 1 else 0], positions, generator=_generator(2))
    if labels.dim():
        labels.view(-1)[::ignore_every] = -100
        if labels.numel() > 1:
            labels.view(-1)[1] = 0
    return labels


# Rows that fill no register, some, several chunks (1024) with a tail, several stretches (32768) with a tail;
# images; one row; one class; no row.
CLASS_SHAPES = (
    (7,),
    (3, 1),
    (33, 10),
    (5, 64),
    (9, 131),
    (4, 1025),
    (2, 33000),
    (3, 5, 7),
    (2, 21, 9, 11),
    (1, 3, 64, 5),
    (2, 3, 2, 3, 5),
    (0, 4),
)


def class_cases() -> Iterator[Case]:
    """cross_entropy and nll_loss over shapes and options."""
    for shape in CLASS_SHAPES:
        classes = shape[1 if len(shape) > 1 else 0]
        logits = _normal(*shape) * 3
        labels = _labels(shape)
        weight = _uniform(classes) + 0.1
        probabilities = _normal(*shape, seed=3).softmax(1 if len(shape) > 1 else 0)
        name = "x".join(map(str, shape))
        yield Case(f"{name}-index", "cross_entropy", logits, labels)
        yield Case(
            f"{name}-weight-smoothing",
            "cross_entropy",
            logits,
            labels,
            {"weight": weight, "label_smoothing": 0.1},
        )
        yield Case(f"{name}-smoothing", "cross_entropy", logits, labels, {"label_smoothing": 0.3})
        ignore = {"ignore_index": 0}
        yield Case(f"{name}-ignore", "cross_entropy", logits, labels.clamp_min(0), ignore)
        yield Case(f"{name}-weight", "cross_entropy", logits, labels, {"weight": weight})
        yield Case(f"{name}-probabilities", "cross_entropy", logits, probabilities)
        yield Case(
            f"{name}-probabilities-weight-smoothing",
            "cross_entropy",
            logits,
            probabilities,
            {"weight": weight, "label_smoothing": 0.2},
        )
        yield Case(f"{name}-index", "nll_loss", logits, labels)
        yield Case(f"{name}-weight", "nll_loss", logits, labels, {"weight": weight})


def value_cases() -> Iterator[Case]:
    """cross_entropy on values that break careless arithmetic."""
    labels = torch.tensor([0, 7, 19, 3, 12, 19])
    base = _normal(6, 20)
    confident = base.clone()
    confident[torch.arange(6), labels] += 30
    masked = base.clone()
    masked[:, 8:12] = -torch.inf
    all_but_one = torch.full((6, 2100), -torch.inf, dtype=torch.float64)
    all_but_one[:, 2050] = 1.0
    all_but_one[torch.arange(6), labels] = 0.5
    for name, logits in {
        "confident": confident,
        "uniform": torch.zeros(6, 20, dtype=torch.float64),
        "large": base + 1e4,
        "range": base * 1e3,
        "masked": masked,
        "masked-chunks": all_but_one,
        "ties": base.round(),
        "infinite": torch.where(torch.arange(20) == 4, torch.inf, base),
        "nan": torch.where(torch.arange(20) == 4, torch.nan, base),
        "target-masked": torch.where(torch.arange(20) == 19, -torch.inf, base),
        "nothing-but-masked": torch.full((6, 20), -torch.inf, dtype=torch.float64),
    }.items():
        yield Case(name, "cross_entropy", logits, labels)
        yield Case(f"{name}-smoothing", "cross_entropy", logits, labels, {"label_smoothing": 0.1})
        columns = logits.t().contiguous().t()
        yield Case(f"{name}-columns", "cross_entropy", columns, labels)


def element_cases() -> Iterator[Case]:
    """The pointwise losses over shapes, broadcast weights and values."""
    for shape in ((), (1,), (0,), (17,), (1023,), (5, 33), (3, 4, 50, 7), (40000,)):
        name = "x".join(map(str, shape)) or "scalar"
        x, t = _normal(*shape) * 4, _uniform(*shape)
        for loss in ("mse_loss", "l1_loss"):
            yield Case(name, loss, x, t)
            yield Case(f"{name}-weight", loss, x, t, {"weight": _uniform(*shape, seed=4)})
        yield Case(name, "binary_cross_entropy", _uniform(*shape, seed=5), t)
        yield Case(name, "binary_cross_entropy_with_logits", x, t)
        if shape:
            last = _uniform(shape[-1], seed=6)
            yield Case(
                f"{name}-weight", "binary_cross_entropy", _uniform(*shape, seed=5), t, {"weight": last}
            )
            both = {"weight": _uniform(*shape, seed=7), "pos_weight": last * 3}
            yield Case(f"{name}-weights", "binary_cross_entropy_with_logits", x, t, both)
    # A weight for each channel, as for images.
    channels = _uniform(4, 1, 1, seed=8) * 5
    x, t = _normal(3, 4, 50, 7) * 4, _uniform(3, 4, 50, 7)
    yield Case("channels", "binary_cross_entropy_with_logits", x, t, {"pos_weight": channels})
    edges = torch.tensor([0.0, 1.0, 0.5, 1e-30, 1 - 1e-7], dtype=torch.float64)
    pairs = torch.cartesian_prod(edges, torch.tensor([0.0, 1.0, 0.3], dtype=torch.float64))
    yield Case("edges", "binary_cross_entropy", pairs[:, 0].contiguous(), pairs[:, 1].contiguous())
    far = torch.tensor([0.0, -0.0, 20.0, -20.0, 100.0, -100.0, 1e4, -1e4, torch.inf, -torch.inf, torch.nan])
    pairs = torch.cartesian_prod(far.double(), torch.tensor([0.0, 1.0, 0.3], dtype=torch.float64))
    for loss in ("binary_cross_entropy_with_logits", "mse_loss", "l1_loss"):
        yield Case("far", loss, pairs[:, 0].contiguous(), pairs[:, 1].contiguous())
    weighted = {"pos_weight": torch.tensor(3.0, dtype=torch.float64)}
    finite = pairs[pairs[:, 0].isfinite()]
    yield Case(
        "far-weight",
        "binary_cross_entropy_with_logits",
        finite[:, 0].contiguous(),
        finite[:, 1].contiguous(),
        weighted,
    )


def all_cases() -> list[Case]:
    return [*class_cases(), *value_cases(), *element_cases()]


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

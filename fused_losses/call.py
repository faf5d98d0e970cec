"""A call of a loss as a value: what the kernels are given, before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Backward = Literal["fused", "recompute", "inplace"]
"""How a user wants the gradient; see `fused_losses.functional`."""

Strategy = Literal["fused", "recompute", "inplace", "late"]
"""How the gradient is computed; see `fused_losses.autograd`."""


class Reduction:
    """What becomes of the losses of all elements or rows, by the numbers that operators take.

    They are plain integers: handing an enumeration to an operator takes a tenth of the time of a small loss.
    """

    NONE = 0
    MEAN = 1
    SUM = 2
    BATCH_MEAN = 3
    """The sum over the size of the first dimension, which `kl_div` alone has."""


REDUCTIONS = {"none": Reduction.NONE, "mean": Reduction.MEAN, "sum": Reduction.SUM}
"""The reductions that every loss has, by torch's names for them."""

EVERY_REDUCTION = tuple(REDUCTIONS)
"""Their names. Whatever a user gives as a reduction can be looked for in a tuple: it need not be hashable."""

REDUCTION_NAMES = ("none", "mean", "sum", "batchmean")
"""Torch's names of reductions, by their numbers."""


class PointwiseOptions(NamedTuple):
    """The options of elementwise losses: what their operators take between tensors and reduction."""

    parameters: tuple[float, ...] = ()
    """The formula's numbers, in the order of the registry's `parameters`."""
    ignore_index: float | None = None
    """Elements whose target equals this count neither in the loss nor in the mean's divisor."""
    normalizer: Tensor | None = None
    """(), float64: what the mean divides by instead of the number of elements or their weights."""


NO_OPTIONS = PointwiseOptions()
"""The options of most elementwise losses."""


class Parameters(NamedTuple):
    """The options of losses of vectors and of class margins, by the same names in the operators."""

    parameters: tuple[float, ...] = ()
    """As in `PointwiseOptions`."""


class SoftmaxOptions(NamedTuple):
    """The options of the softmax family, by the same names in the operators."""

    ignore_index: int = -100
    """Rows with this label count neither in the loss nor in the mean's divisor."""
    label_smoothing: float = 0.0
    """The share of a row's target that is spread evenly over all classes, in [0, 1]."""
    terms: tuple[float, ...] = ()
    """z_loss, entropy, logit_scale and softcap (0 for no cap); empty where all have no effect."""
    normalizer: Tensor | None = None
    """(), float64: what the mean divides by instead of the labels' weights or the number of rows."""
    lse_gradient: Tensor | None = None
    """(N, d1, ...), float32 (float64 for float64): the upstream gradient of log-sum-exps, in a backward."""


Options = PointwiseOptions | Parameters | SoftmaxOptions


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which numbers of that dtype are added up: float32, float64 for float64."""
    return torch.float64 if dtype is torch.float64 else torch.float32


@dataclass(frozen=True, init=False)
class Call:
    """A call that kernels take. Whoever makes one has checked shapes, dtypes and devices."""

    name: str
    """The loss, by its name in the registry."""
    input: Tensor
    """Scores, predictions or vectors, floating: (...) for elementwise losses, (N, C, d1, ...) or (C) for the
    softmax family, (N, C) or (C) for class margins, (..., D) for losses of vectors."""
    target: Tensor
    """Broadcastable with input; for losses of vectors, the second vector. For classes, labels (N, d1, ...),
    int64 or uint8, or probabilities shaped as input."""
    options: Options
    """The options of the loss's family."""
    reduction: int
    """A number of `Reduction`."""
    dtype: torch.dtype | None = None
    """The loss's dtype, where it is not the input's."""
    weight: Tensor | None = None
    """A factor, floating: broadcastable to input for elementwise losses, (C) for classes."""
    extra: Tensor | None = None
    """The third tensor of losses that have one, floating and broadcastable with input: pos_weight, var, the
    signs of a ranking or of pairs of vectors (with a last dimension of 1), the negatives of triplets."""
    finish: Callable[[Tensor], Tensor] | None = None
    """A differentiable function that makes the result of what kernels return, where that is not it yet."""

    def __init__(
        self,
        name: str,
        input: Tensor,
        target: Tensor,
        options: Options,
        reduction: int,
        dtype: torch.dtype | None = None,
        weight: Tensor | None = None,
        extra: Tensor | None = None,
        finish: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        # The generated method sets each field of a frozen class by a function, and takes three times as long.
        fields = self.__dict__
        fields["name"], fields["input"], fields["target"] = name, input, target
        fields["options"], fields["reduction"], fields["dtype"] = options, reduction, dtype
        fields["weight"], fields["extra"], fields["finish"] = weight, extra, finish

    @property
    def operands(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Input, target, weight and extra, in the operators' order."""
        return self.input, self.target, self.weight, self.extra

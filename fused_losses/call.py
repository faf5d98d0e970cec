"""A call of a loss as a value: what the kernels are given, before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Backward = Literal["fused", "recompute", "inplace"]
"""How a user wants the gradient; see `fused_losses.functional`."""

Strategy = Literal["fused", "recompute", "inplace", "late"]
"""How the gradient is computed; see `fused_losses.autograd`."""


class Reduction(IntEnum):
    """What becomes of the losses of all elements or rows; operators take these numbers."""

    NONE = 0
    MEAN = 1
    SUM = 2
    BATCH_MEAN = 3
    """The sum over the size of the first dimension, which `kl_div` alone has."""

    @property
    def torch_name(self) -> str:
        """The string by which torch's functions know it: "none", "mean", "sum" or "batchmean"."""
        return ("none", "mean", "sum", "batchmean")[self]


REDUCTIONS = {"none": Reduction.NONE, "mean": Reduction.MEAN, "sum": Reduction.SUM}
"""The reductions that every loss has, by torch's names for them."""


class Operands(NamedTuple):
    """The tensors of a call, in the operators' order, all on one device."""

    input: Tensor
    """What the loss is of, any floating dtype: (...) for elementwise losses, (N, C, d1, ...) or (C) for
    softmax, (N, C) or (C) for class margins, (..., D) for losses of vectors."""
    target: Tensor
    """Broadcastable with input (the second vector, for losses of vectors); for classes, labels (N, d1, ...),
    int64 or uint8, or probabilities shaped as input."""
    weight: Tensor | None = None
    """A factor, broadcastable to input for elementwise losses, (C) for classes; floating."""
    extra: Tensor | None = None
    """The third tensor of the losses that have one, broadcastable with input: pos_weight, var, the sign of a
    ranking or of a pair of vectors (with a last dimension of 1), the negative of a triplet; floating."""


class PointwiseOptions(NamedTuple):
    """What the operators of elementwise losses take between their tensors and the reduction."""

    parameters: tuple[float, ...] = ()
    """The formula's numbers, in the order of the registry's `parameters`."""
    ignore_index: float | None = None
    """Elements whose target equals this count neither in the loss nor in the mean's divisor."""


class Parameters(NamedTuple):
    """What the operators of vectors and of class margins take there."""

    parameters: tuple[float, ...] = ()


class SoftmaxOptions(NamedTuple):
    """What the operators of the softmax family take there."""

    ignore_index: int = -100
    """Rows with this label count neither in the loss nor in the mean's divisor."""
    label_smoothing: float = 0.0
    """In [0, 1]."""
    terms: tuple[float, ...] = ()
    """z_loss, entropy, logit_scale and softcap (0 for no cap); empty where all have no effect."""
    normalizer: Tensor | None = None
    """(), float64: what the mean divides by instead of the labels' weights or the number of rows."""
    lse_gradient: Tensor | None = None
    """(N, d1, ...), float32 (float64 for float64): the upstream gradient of log-sum-exps, in a backward."""


Options = PointwiseOptions | Parameters | SoftmaxOptions


@dataclass(frozen=True)
class Call:
    """A call that kernels take. Whoever makes one has checked shapes, dtypes and devices."""

    name: str
    """The loss, by its name in the registry."""
    operands: Operands
    options: Options
    """What the loss's family takes."""
    reduction: Reduction
    dtype: torch.dtype | None = None
    """The loss's dtype, where it is not the input's."""
    finish: Callable[[Tensor], Tensor] | None = None
    """A differentiable function that makes the result of what kernels return, where that is not it yet."""

"""Ways to call a loss for which kernels have code of their own: options, weights, layouts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from fused_losses.samples import Inputs


def _same(inputs: Inputs, generator: Generator) -> Inputs:
    return inputs


def _as_it_is(input: Tensor) -> Tensor:
    return input


@dataclass(frozen=True)
class Variant:
    """How a call differs from the one that `fused_losses.registry` has for the loss."""

    call: dict[str, Any] = field(default_factory=dict)
    """Additional keyword arguments."""
    losses: tuple[str, ...] = ()
    """The losses that can be called so; empty for all."""
    per_class: tuple[str, ...] = ()
    """Keywords whose values are tensors (C), factors of the classes; they are the last of a case's inputs."""
    change: Callable[[Inputs, Generator], Inputs] = _same
    """Makes other inputs of the usual ones, which are float32."""
    keeps_float32: bool = False
    """Whether the target stays in float32, as under autocast, where the dtype of the case is another."""
    layout: Callable[[Tensor], Tensor] = _as_it_is
    """Makes a tensor with the elements of an input at other places in memory."""
    laid: int = 0
    """The index of that input."""
    finish: Callable[[Tensor], Tensor] | None = None
    """Makes the loss, (), of what the function returns."""
    composed: Callable[..., Tensor] | None = None
    """The loss in torch's functions, if torch has none with these keywords."""


def _probabilities(inputs: Inputs, generator: Generator) -> Inputs:
    """The inputs with probabilities of classes (dimension 1) in the place of labels."""
    logits = inputs[0]
    return logits, torch.randn(logits.shape, generator=generator).softmax(1)


def strided_copy(tensor: Tensor, stride: tuple[int, ...], offset: int, size: int) -> Tensor:
    """A copy of a tensor with other strides, which begins at `offset` in memory of `size` elements."""
    memory = tensor.detach().new_empty(size)
    copy = memory.as_strided(tensor.shape, stride, offset).copy_(tensor.detach())
    return copy.requires_grad_(tensor.requires_grad)


def _sliced(input: Tensor) -> Tensor:
    """A copy of (N, C) that is laid out as `whole[:, 1:]` of (N, C + 1), so that rows are not aligned."""
    rows, classes = input.shape
    return strided_copy(input, (classes + 1, 1), 1, rows * (classes + 1))


def _transposed(input: Tensor) -> Tensor:
    """A copy of (N, C) whose columns lie side by side."""
    rows, columns = input.shape
    return strided_copy(input, (1, rows), 0, rows * columns)


def _half(loss: Tensor) -> Tensor:
    """A loss with a factor: one of several losses, or of several batches whose gradients are added up."""
    return 0.5 * loss


def _with_terms(
    input: Tensor, target: Tensor, *, z_loss: float = 0.0, softcap: float | None = None
) -> Tensor:
    """Cross-entropy with a z-loss or a soft cap, as programs without this package write it."""
    logits = input if softcap is None else softcap * torch.tanh(input / softcap)
    loss = F.cross_entropy(logits, target)
    return loss + z_loss * logits.logsumexp(1).square().mean() if z_loss else loss


USUAL = ""

_CROSS_ENTROPY = ("cross_entropy",)
_LOGISTIC = ("binary_cross_entropy_with_logits",)
# Whose weights may be one for each class: those of others have the shape of the input.
_WEIGHTED = (
    *_CROSS_ENTROPY,
    "nll_loss",
    "binary_cross_entropy",
    *_LOGISTIC,
    "multilabel_soft_margin_loss",
    "multi_margin_loss",
)

VARIANTS = {
    USUAL: Variant(),
    "sum": Variant({"reduction": "sum"}),
    "class weights": Variant(losses=_WEIGHTED, per_class=("weight",)),
    "label smoothing": Variant({"label_smoothing": 0.1}, _CROSS_ENTROPY),
    "weights and smoothing": Variant({"label_smoothing": 0.1}, _CROSS_ENTROPY, per_class=("weight",)),
    # PaLM's factor, and Gemma 2's cap of its last logits.
    "z-loss": Variant({"z_loss": 1e-4}, _CROSS_ENTROPY, composed=_with_terms),
    "softcap": Variant({"softcap": 30.0}, _CROSS_ENTROPY, composed=_with_terms),
    "probabilities": Variant(losses=_CROSS_ENTROPY, change=_probabilities),
    "pos_weight": Variant(losses=_LOGISTIC, per_class=("pos_weight",)),
    "float32 targets": Variant(losses=(*_LOGISTIC, "mse_loss"), keeps_float32=True),
    "slice": Variant(layout=_sliced),
    "transposed target": Variant(losses=("mse_loss",), layout=_transposed, laid=1),
    "half": Variant(finish=_half),
    "losses summed": Variant({"reduction": "none"}, finish=Tensor.sum),
}
"""The variants, by the name that a row has for them."""

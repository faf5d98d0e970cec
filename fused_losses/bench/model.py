"""What a training step of a loss layer has in memory at once: hidden states, head, cross-entropy, gradients.

A step is a few phases; in each, some tensors are alive. Its peak is the phase with the most bytes. Inputs
(hidden states, weight, labels) are not counted, as every provider has them; gradients are. What a provider
keeps of each row (two numbers) and of each thread (a few rows) is left out: a thousandth of the logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fused_losses.bench.cases import DTYPES
from fused_losses.linear.chunks import rows_per_chunk
from fused_losses.linear.products import BLOCK_BYTES, choose_logits_dtype


@dataclass(frozen=True)
class Layer:
    """A linear layer that makes logits (N, V) of hidden states (N, D)."""

    rows: int
    """N, the number of hidden states: batch x sequence."""
    features: int
    """D"""
    classes: int
    """V"""
    dtype: str
    """A name among those of `cases.DTYPES`."""

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return DTYPES[self.dtype].itemsize

    @property
    def logits(self) -> int:
        """Bytes of all logits."""
        return self.rows * self.classes * self.itemsize


@dataclass(frozen=True)
class Term:
    """A tensor that is alive in a phase, and why."""

    name: str
    bytes: int
    reason: str


Phases = dict[str, list[Term]]
"""What is alive, by the name of a phase."""


def _gradients(layer: Layer) -> list[Term]:
    """The gradients that any step ends with, and what a CPU needs to compute them."""
    hidden_bytes = layer.rows * layer.features * layer.itemsize
    weight_bytes = layer.classes * layer.features * layer.itemsize
    terms = [
        Term("hidden states' gradient", hidden_bytes, "a result, N x D"),
        Term("weight's gradient", weight_bytes, "a result, V x D"),
    ]
    if layer.itemsize < 4:
        accumulator = layer.classes * layer.features * 4
        terms.append(
            Term("float32 copy", accumulator, "a CPU's product of 16 bits is added up in float32, V x D")
        )
    return terms


def _layer_backward(layer: Layer) -> list[Term]:
    """The last phase of a provider that has all logits: from their gradient to the layer's."""
    return [Term("logits' gradient", layer.logits, "the layer's backward reads it"), *_gradients(layer)]


def _eager(layer: Layer) -> Phases:
    log_probabilities = Term(
        "log-probabilities", layer.logits, "log_softmax keeps its output for its backward"
    )
    return {
        "forward": [
            Term("logits", layer.logits, "the layer's output; freed when the loss returns"),
            log_probabilities,
        ],
        "the loss's backward": [
            log_probabilities,
            Term("their gradient", layer.logits, "nll_loss's backward: zeros, but for the targets"),
            Term("logits' gradient", layer.logits, "log_softmax's backward makes it from both"),
        ],
        "the layer's backward": _layer_backward(layer),
    }


def _one_pass(layer: Layer) -> Phases:
    """Compiled torch and the strategy in place, which overwrite the logits with their gradient."""
    logits = Term("logits", layer.logits, "the layer's output; their gradient overwrites them")
    return {"forward": [logits], "the layer's backward": _layer_backward(layer)}


def _fused(layer: Layer) -> Phases:
    logits = Term("logits", layer.logits, "kept, in case of a second backward; freed after the first")
    gradient = Term("logits' gradient", layer.logits, "made with the loss, from one pass over the logits")
    return {"the loss": [logits, gradient], "the layer's backward": _layer_backward(layer)}


def _linear(layer: Layer) -> Phases:
    cpu = torch.device("cpu")
    itemsize = choose_logits_dtype(DTYPES[layer.dtype], cpu).itemsize
    chunk_rows = min(layer.rows, rows_per_chunk(layer.classes, itemsize, None, cpu))
    sums = [
        Term("hidden states' gradient", layer.rows * layer.features * 4, "in float32 until it is scaled"),
        Term("weight's gradient", layer.classes * layer.features * 4, "the sum over chunks, in float32"),
    ]
    chunk = Term(
        "logits",
        chunk_rows * layer.classes * itemsize,
        f"{chunk_rows} rows at a time, overwritten by their gradient",
    )
    rounded = [] if layer.itemsize == 4 else _gradients(layer)[:2]
    converted = (
        [] if itemsize == layer.itemsize else [Term("weight in float32", BLOCK_BYTES, "a block at a time")]
    )
    return {"chunks": [chunk, *converted, *sums], "backward": [*sums, *rounded]}


MODELS: dict[str, Callable[[Layer], Phases]] = {
    "eager": _eager,
    "compile": _one_pass,
    "fused": _fused,
    "inplace": _one_pass,
    "linear": _linear,
}
"""The phases of a step, by the provider's name in `fused_losses.bench.providers`."""


def peak(provider: str, layer: Layer) -> tuple[str, list[Term]]:
    """The phase with the most bytes, and what is alive in it."""
    phases = MODELS[provider](layer)
    return max(phases.items(), key=lambda phase: total(phase[1]))


def total(terms: list[Term]) -> int:
    """The bytes of all of them."""
    return sum(term.bytes for term in terms)

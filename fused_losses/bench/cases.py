"""What is measured: every loss of the registry, on the shapes of its kind, at every size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from fused_losses.registry import LOSSES
from fused_losses.samples import Inputs, Shape

Size = Literal["large", "medium", "small"]
Pass = Literal["forward", "backward", "step"]

# float64 is absent: it is the reference that every result is judged against.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# large: 8M elements, beyond the private caches; medium: 64k, inside them; small: all overhead.
SIZES: tuple[Size, ...] = ("large", "medium", "small")

_FLAT: dict[Size, Sequence[Shape]] = {
    "large": [(8192, 1024)],
    "medium": [(64, 1024)],
    "small": [(32, 10)],
}

SHAPES: dict[str, dict[Size, Sequence[Shape]]] = {
    "elements": _FLAT,
    "labels": _FLAT,
    # Two vocabularies, a segmentation map with its classes in dimension 1, many short rows.
    "classes": {
        "large": [(256, 32768), (64, 131072), (8, 21, 224, 224), (838860, 10)],
        "medium": [(64, 1024), (6553, 10)],
        "small": [(32, 10)],
    },
    # 128 numbers: what an embedding of a face or a sentence has at the least.
    "vectors": {"large": [(65536, 128)], "medium": [(512, 128)], "small": [(32, 10)]},
}
"""Shapes of the first input, by `Loss.shapes` and size."""


@dataclass(frozen=True)
class Case:
    """A loss at one shape and dtype, called as in training."""

    loss: str
    size: Size
    shape: Shape
    dtype: str
    device: str = "cpu"

    def __str__(self) -> str:
        """The case in one line, for the progress bar."""
        return f"{self.loss} {self.shape_text} {self.dtype}"

    @property
    def shape_text(self) -> str:
        """The shape as ``256x32768``."""
        return "x".join(map(str, self.shape))

    @property
    def numel(self) -> int:
        """Elements of the first input."""
        return math.prod(self.shape)

    @property
    def input_bytes(self) -> int:
        """Bytes of the first input, and of its gradient."""
        return self.numel * DTYPES[self.dtype].itemsize

    @property
    def keywords(self) -> dict[str, Any]:
        """What the loss is called with besides its operands."""
        return LOSSES[self.loss].call

    def inputs(self, seed: int) -> Inputs:
        """Inputs whose content depends on ``seed`` alone; those that are trained require grad."""
        loss = LOSSES[self.loss]
        made = loss.inputs(self.shape, torch.Generator().manual_seed(seed))
        dtype = DTYPES[self.dtype]
        inputs = tuple(t.to(self.device, dtype if t.is_floating_point() else t.dtype) for t in made)
        for index in loss.trained:
            inputs[index].requires_grad_()
        return inputs

    def bytes_moved(self, pass_: Pass, inputs: Inputs) -> int | None:
        """Bytes that any implementation must move: inputs read once, gradients written once.

        Returns:
            None for the backward pass: how much of the work is left to it is the strategy's choice.
        """
        if pass_ == "backward":
            return None
        loss = LOSSES[self.loss]
        read = loss.reads(inputs)
        return read if pass_ == "forward" else read + sum(inputs[index].nbytes for index in loss.trained)


def select(
    sizes: Iterable[Size], losses: Iterable[str], dtypes: Iterable[str], device: str = "cpu"
) -> list[Case]:
    """The cases of a run, those of one size and dtype together."""
    chosen, kinds = list(losses), list(dtypes)
    return [
        Case(loss, size, shape, dtype, device)
        for size in sizes
        for dtype in kinds
        for loss in chosen
        for shape in SHAPES[LOSSES[loss].shapes][size]
    ]

"""What is measured: losses, shapes, inputs and the bytes that a step must move.

A new loss is one row of `LOSSES`.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Inputs = tuple[Tensor, ...]
Shape = tuple[int, ...]
Size = Literal["large", "medium", "small"]
Pass = Literal["forward", "backward", "step"]

# float64 is absent: it is the reference that every result is judged against.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# The closest to 0 and 1 that a probability comes: bfloat16, with 8 significant bits, still tells
# both ends apart. A probability that rounds to 1 has a gradient of 1e12 / N, beside which every
# other error vanishes.
PROBABILITY_MARGIN = 2.0**-7

# Spread of the random logits: wide enough that a row has likely and unlikely classes.
LOGIT_SCALE = 3.0


def _classes(shape: Shape, generator: torch.Generator) -> Tensor:
    """A class index per row; none is ignored, so that every row costs the same."""
    rows = (shape[0], *shape[2:])
    return torch.randint(shape[1], rows, generator=generator)


def _logits_and_classes(shape: Shape, generator: torch.Generator) -> Inputs:
    logits = torch.randn(shape, generator=generator).mul_(LOGIT_SCALE)
    return logits, _classes(shape, generator)


def _log_probabilities_and_classes(shape: Shape, generator: torch.Generator) -> Inputs:
    logits, classes = _logits_and_classes(shape, generator)
    return logits.log_softmax(1), classes


def _logits_and_labels(shape: Shape, generator: torch.Generator) -> Inputs:
    logits = torch.randn(shape, generator=generator).mul_(LOGIT_SCALE)
    return logits, torch.rand(shape, generator=generator).round_()


def _probabilities_and_labels(shape: Shape, generator: torch.Generator) -> Inputs:
    logits, labels = _logits_and_labels(shape, generator)
    return logits.sigmoid_().clamp_(PROBABILITY_MARGIN, 1 - PROBABILITY_MARGIN), labels


def _two_normal(shape: Shape, generator: torch.Generator) -> Inputs:
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def _all_elements(inputs: Inputs) -> int:
    return sum(tensor.nbytes for tensor in inputs)


def _picked_elements(inputs: Inputs) -> int:
    """nll_loss reads one element per row: the one that the class index picks."""
    log_probabilities, classes = inputs
    return classes.nbytes + classes.numel() * log_probabilities.element_size()


@dataclass(frozen=True)
class Loss:
    """One row of the table of losses.

    Attributes:
        shapes: shapes of the first input, the one whose gradient is taken, per size.
        make: float32 inputs of a shape; the floating-point ones are then cast to the case's dtype.
        bytes_read: bytes of the inputs that the forward cannot avoid reading.
    """

    shapes: dict[Size, Sequence[Shape]]
    make: Callable[[Shape, torch.Generator], Inputs]
    bytes_read: Callable[[Inputs], int] = _all_elements


# large: 8M elements, beyond the private caches; medium: 64k, inside them; small: all overhead.
_ROWS: dict[Size, Sequence[Shape]] = {
    # Two vocabularies, a segmentation map with its classes in dimension 1, many short rows.
    "large": [(256, 32768), (64, 131072), (8, 21, 224, 224), (838860, 10)],
    "medium": [(64, 1024), (6553, 10)],
    "small": [(32, 10)],
}
_FLAT: dict[Size, Sequence[Shape]] = {
    "large": [(8192, 1024)],
    "medium": [(64, 1024)],
    "small": [(32, 10)],
}

LOSSES = {
    "cross_entropy": Loss(_ROWS, _logits_and_classes),
    "nll_loss": Loss(_ROWS, _log_probabilities_and_classes, _picked_elements),
    "binary_cross_entropy": Loss(_FLAT, _probabilities_and_labels),
    "binary_cross_entropy_with_logits": Loss(_FLAT, _logits_and_labels),
    "mse_loss": Loss(_FLAT, _two_normal),
    "l1_loss": Loss(_FLAT, _two_normal),
}


@dataclass(frozen=True)
class Case:
    """A loss at one shape and dtype, reduction "mean"."""

    loss: str
    shape: Shape
    dtype: str

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

    def inputs(self, seed: int) -> Inputs:
        """Inputs whose content depends on ``seed`` alone; the first one requires grad."""
        generator = torch.Generator().manual_seed(seed)
        made = LOSSES[self.loss].make(self.shape, generator)
        dtype = DTYPES[self.dtype]
        first, *rest = (t.to(dtype) if t.is_floating_point() else t for t in made)
        return first.requires_grad_(), *rest

    def bytes_moved(self, pass_: Pass, inputs: Inputs) -> int | None:
        """Bytes that any implementation must move: inputs read once, gradient written once.

        Returns:
            None for the backward pass: how much of the work is left to it is the strategy's choice.
        """
        if pass_ == "backward":
            return None
        read = LOSSES[self.loss].bytes_read(inputs)
        return read if pass_ == "forward" else read + self.input_bytes


def select(size: Size, losses: Iterable[str], dtypes: Iterable[str]) -> list[Case]:
    """The cases of a run, those of one dtype together."""
    chosen = list(losses)
    return [
        Case(loss, shape, dtype) for dtype in dtypes for loss in chosen for shape in LOSSES[loss].shapes[size]
    ]

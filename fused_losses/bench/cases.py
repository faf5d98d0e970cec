"""What is measured: every loss of the registry and of `heads`, on the shapes of its kind, at every size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Generator

from fused_losses.bench.heads import HEADS, Head
from fused_losses.bench.variants import USUAL, VARIANTS, Variant
from fused_losses.registry import LOSSES, Loss
from fused_losses.samples import Inputs, Shape

Size = Literal["large", "medium", "small"]
Pass = Literal["forward", "training-forward", "backward", "step"]

# float64 is absent, since every result is judged against torch's in float64.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# large: 8M elements, beyond the private caches; medium: 64k, inside them; small: all overhead.
SIZES: tuple[Size, ...] = ("large", "medium", "small")

# The most elements for which float64 results are computed, with some ten arrays of float64: 1.3 GiB. A larger
# batch repeats a part of at most so many; the part's float64 results must hold for each repetition. No case
# of a run on a CPU is larger.
PART_ELEMENTS = 2**24

_FLAT: dict[Size, Sequence[Shape]] = {
    "large": [(8192, 1024)],
    "medium": [(64, 1024)],
    "small": [(32, 10)],
}

SHAPES: dict[str, dict[Size, Sequence[Shape]]] = {
    "elements": _FLAT,
    "scores": _FLAT,
    # Two vocabularies, a segmentation map with its classes in dimension 1, many short rows.
    "classes": {
        "large": [(256, 32768), (64, 131072), (8, 21, 224, 224), (838860, 10)],
        "medium": [(64, 1024), (6553, 10)],
        "small": [(32, 10)],
    },
    # 128 numbers: as many as an embedding of a face or a sentence has at the least.
    "vectors": {"large": [(65536, 128)], "medium": [(512, 128)], "small": [(32, 10)]},
}
"""Shapes of the first input, by `Loss.shapes` and size; each size has about as many elements for all."""


@dataclass(frozen=True)
class Case:
    """A loss at one shape and dtype, called as in training."""

    loss: str
    size: Size
    shape: Shape
    dtype: str
    device: str = "cpu"
    variant: str = USUAL

    def __str__(self) -> str:
        """The case in one line, for the progress bar."""
        return f"{self.loss} {self.shape_text} {self.dtype} {self.variant}".rstrip()

    @property
    def shape_text(self) -> str:
        """The shape as ``256x32768``."""
        return "x".join(map(str, self.shape))

    @property
    def head(self) -> Head | None:
        """The row of `heads` for a loss behind a linear layer, whose shape is (N, D, V); None for others."""
        return HEADS.get(self.loss)

    @property
    def numel(self) -> int:
        """Elements of the logits: of the first input, or of what the linear layer makes of it."""
        return math.prod(self.shape) if self.head is None else self.shape[0] * self.shape[2]

    @property
    def input_bytes(self) -> int:
        """Bytes of the logits, and of their gradient."""
        return self.numel * DTYPES[self.dtype].itemsize

    @property
    def gradient_bytes(self) -> int:
        """Bytes of the gradients that a step results in."""
        itemsize = DTYPES[self.dtype].itemsize
        if self.head is None:
            # Whatever is trained has the shape of the first input.
            return len(self.description.trained) * self.numel * itemsize
        rows, features, classes = self.shape
        return (rows + classes) * features * itemsize

    @property
    def description(self) -> Loss | Head:
        """The row of the table that the loss is in."""
        return LOSSES[self.loss] if self.head is None else self.head

    @property
    def options(self) -> Variant:
        """How the call differs from the usual one."""
        return VARIANTS[self.variant]

    @property
    def keywords(self) -> dict[str, Any]:
        """What the loss is called with besides its operands."""
        return {**self.description.call, **self.options.call}

    @property
    def parts(self) -> int:
        """How often the batch repeats its first rows: the least power of two that makes them few enough."""
        parts = 1
        if self.head is None:
            while self.numel // parts > PART_ELEMENTS and self.shape[0] % (2 * parts) == 0:
                parts *= 2
        return parts

    def part(self, inputs: Inputs) -> Inputs:
        """The inputs of the rows that the batch repeats; factors of classes stay whole."""
        if self.parts == 1:
            return inputs
        batched = len(inputs) - len(self.options.per_class)
        rows = self.shape[0] // self.parts
        return tuple(x[:rows] if index < batched else x for index, x in enumerate(inputs))

    def inputs(self, seed: int) -> Inputs:
        """Inputs whose content depends on ``seed`` alone; those that are trained require grad."""
        loss, options, parts = self.description, self.options, self.parts
        generator = Generator(self.device).manual_seed(seed)
        # Made on the device itself: a CPU would take seconds to make a GPU's inputs.
        with torch.device(self.device):
            made = loss.inputs((self.shape[0] // parts, *self.shape[1:]), generator)
            made = options.change(made, generator)
            # Factors around 1, so that a weighted loss is as large as the usual one.
            factors = [torch.rand(self.shape[1], generator=generator) + 0.5 for _ in options.per_class]
        dtype = DTYPES[self.dtype]
        inputs = [t.to(dtype) if t.is_floating_point() else t for t in made]
        if options.keeps_float32:
            inputs[1] = made[1]
        if parts > 1:
            inputs = [t.repeat(parts, *[1] * (t.dim() - 1)) for t in inputs]
        inputs[options.laid] = options.layout(inputs[options.laid])
        for index in loss.trained:
            inputs[index].requires_grad_()
        return *inputs, *(t.to(dtype) for t in factors)

    def bytes_moved(self, pass_: Pass, inputs: Inputs) -> int | None:
        """Bytes that any implementation must move: inputs read once, gradients written once.

        Returns:
            None for the forward or the backward of training alone, since each strategy divides the work
            between them in its own way; and for a loss behind a linear layer, whose floor is the layer's
            matrix products.
        """
        if pass_ in ("backward", "training-forward") or self.head is not None:
            return None
        loss = LOSSES[self.loss]
        read = loss.reads(inputs)
        return read if pass_ == "forward" else read + sum(inputs[index].nbytes for index in loss.trained)


def select(
    sizes: Iterable[Size],
    losses: Iterable[str],
    dtypes: Iterable[str],
    device: str = "cpu",
    shapes: Sequence[Shape] = (),
    variants: Sequence[str] = (USUAL,),
) -> list[Case]:
    """The cases of a run, those of one size and dtype together; a loss has the variants that it can have.

    Args:
        sizes: which sizes.
        losses: which losses, by their names.
        dtypes: which dtypes, by their names.
        device: "cpu" or "cuda".
        shapes: shapes of the first input, in the place of those that a size has.
        variants: ways to call a loss, by their names in `variants`.

    Raises:
        ValueError: a shape that a loss does not take.
    """
    chosen, kinds = list(losses), list(dtypes)
    for loss in chosen:
        for shape in shapes:
            _check_shape(loss, shape)
    return [
        Case(loss, size, shape, dtype, device, variant)
        for size in sizes
        for dtype in kinds
        for loss in chosen
        for shape in shapes or _shapes(loss, size)
        for variant in variants
        if takes_variant(loss, shape, variant)
    ]


_ROWS, _IMAGES, _SHORT_ROWS = (256, 32768), (8, 21, 224, 224), (838860, 10)
_OPTIONS = (
    "class weights",
    "label smoothing",
    "weights and smoothing",
    "z-loss",
    "softcap",
    "probabilities",
    "half",
    "losses summed",
)

SETS: dict[str, Sequence[tuple[str, Shape, str]]] = {
    "options": [
        *(("cross_entropy", _ROWS, name) for name in (USUAL, *_OPTIONS)),
        *(("cross_entropy", _IMAGES, name) for name in (USUAL, "weights and smoothing")),
        *(("cross_entropy", _SHORT_ROWS, name) for name in (USUAL, "weights and smoothing")),
        ("nll_loss", _IMAGES, USUAL),
        ("binary_cross_entropy_with_logits", (8192, 1024), USUAL),
        ("binary_cross_entropy_with_logits", (8192, 1024), "pos_weight"),
        ("binary_cross_entropy_with_logits", (8192, 1024), "losses summed"),
        ("binary_cross_entropy", (8192, 1024), USUAL),
        *(("mse_loss", (8192, 1024), name) for name in ("slice", "transposed target")),
        *((loss, (65536, 128), USUAL) for loss in ("triplet_margin_loss", "cosine_embedding_loss")),
    ]
}
"""Cases by the name of their set: loss, shape and variant. Those of `options` are what programs ask for."""


def cases_of_set(name: str, losses: Iterable[str], dtypes: Iterable[str]) -> list[Case]:
    """The cases of a set on the CPU that have these losses and dtypes."""
    return [
        Case(loss, "large", shape, dtype, variant=variant)
        for dtype in dtypes
        for loss, shape, variant in SETS[name]
        if loss in losses
    ]


def takes_variant(loss: str, shape: Shape, variant: str) -> bool:
    """Whether a loss of inputs of that shape can be called so; behind a linear layer, only as usual."""
    if variant == USUAL:
        return True
    # Other layouts are those of rows, and behind a layer there are no options that all providers have.
    if loss in HEADS or (variant in ("slice", "transposed target") and len(shape) != 2):
        return False
    return loss in (VARIANTS[variant].losses or LOSSES)


_FORMS = {
    "elements": ("any dimensions", 1, math.inf),
    "classes": ("ROWSxCLASSES, or ROWSxCLASSESxHEIGHTxWIDTH", 2, math.inf),
    "scores": ("ROWSxCLASSES", 2, 2),
    "vectors": ("ROWSxFEATURES", 2, 2),
    "heads": ("ROWSxFEATURESxCLASSES", 3, 3),
}
"""What the first input's shape means, and the fewest and the most dimensions, by kind of input."""


def form(loss: str) -> str:
    """What the shape of a loss's first input means, as ROWSxCLASSES."""
    return _FORMS["heads" if loss in HEADS else LOSSES[loss].shapes][0]


def _check_shape(loss: str, shape: Shape) -> None:
    """Raises ValueError for a shape that inputs of that loss cannot have."""
    _, least, most = _FORMS["heads" if loss in HEADS else LOSSES[loss].shapes]
    if not least <= len(shape) <= most:
        raise ValueError(f"{loss} takes shapes of {form(loss)}, not {'x'.join(map(str, shape))}")


def _shapes(loss: str, size: Size) -> Sequence[Shape]:
    return HEADS[loss].sizes[size] if loss in HEADS else SHAPES[LOSSES[loss].shapes][size]

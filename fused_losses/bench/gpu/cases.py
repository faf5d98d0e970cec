"""The cases that a run on a GPU measures, those that matter most first, since a run may be cut short."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from fused_losses.bench.cases import Case
from fused_losses.bench.providers import (
    BACKENDS,
    COMPILE,
    EAGER,
    PEERS,
    PRODUCTS,
    PROVIDERS,
    STRATEGIES,
    serving,
)
from fused_losses.bench.variants import USUAL
from fused_losses.registry import LOSSES
from fused_losses.samples import Shape

# Large beside an H100's cache of 50 MiB: 64M elements of 16 bits are 128 MiB for each operand and gradient.
# Vectors have 64 MiB each, and the vocabulary's logits 512 MiB.
_ELEMENTS: Shape = (65536, 1024)
_VECTORS: Shape = (262144, 128)
_VOCABULARY: Shape = (8192, 32768)
_SHAPES: dict[str, Shape] = {
    "elements": _ELEMENTS,
    "scores": _ELEMENTS,
    "vectors": _VECTORS,
    "classes": _VOCABULARY,
}

# A large vocabulary; GPT-2's, whose rows have an odd length; segmentation maps, the second with planes of odd
# size; ImageNet's classes; a small vocabulary; and rows so short that several share a block of threads.
_OTHER_CLASSES: Sequence[Shape] = (
    (4096, 131072),
    (8192, 50257),
    (256, 21, 128, 128),
    (256, 19, 127, 127),
    (65536, 1000),
    (16384, 4096),
    (1048576, 100),
    (8388608, 10),
)

# So small that the time of a call is the host's.
_SMALL: Shape = (32, 10)
_COMMON = ("cross_entropy", "binary_cross_entropy_with_logits", "mse_loss", "triplet_margin_loss")

# Shapes (N, D, V) of heads; the third is Llama 3's.
_HEADS: Sequence[Shape] = ((8192, 4096, 32768), (4096, 4096, 131072), (8192, 4096, 128256))

_CLASS_VARIANTS = (
    "class weights",
    "label smoothing",
    "weights and smoothing",
    "z-loss",
    "softcap",
    "probabilities",
    "sum",
    "half",
    "losses summed",
)
_ELEMENT_VARIANTS = (
    ("binary_cross_entropy_with_logits", "pos_weight"),
    ("binary_cross_entropy_with_logits", "class weights"),
    ("binary_cross_entropy_with_logits", "float32 targets"),
    ("mse_loss", "float32 targets"),
    ("mse_loss", "slice"),
    ("mse_loss", "transposed target"),
)

# The most that a rehearsal leaves of each dimension of a shape.
_TINY: Shape = (8, 70, 9, 8)


def cases(device: str, tiny: bool = False) -> list[Case]:
    """All cases of a run on a GPU; for a rehearsal (`tiny`), with shapes that are as small as possible."""
    found = [replace(case, device=device) for case in _cases()]
    # Cases that differ in size alone become the same.
    return list(dict.fromkeys(map(_shrunk, found))) if tiny else found


def _shrunk(case: Case) -> Case:
    shape = tuple(min(size, most) for size, most in zip(case.shape, _TINY, strict=False))
    return replace(case, shape=shape, size="small")


def _cases() -> Iterator[Case]:
    for dtype in ("bfloat16", "float32"):
        yield Case("cross_entropy", "large", _VOCABULARY, dtype)
    yield from _classes("bfloat16", _OTHER_CLASSES[:2])
    for loss in _COMMON[1:]:
        yield _large(loss, "bfloat16")
    yield from _classes("bfloat16", _OTHER_CLASSES[2:])
    for loss in _COMMON:
        yield Case(loss, "small", _SMALL, "float32")
    for shape in _HEADS:
        yield Case("linear_cross_entropy", "large", shape, "bfloat16")
    for variant in _CLASS_VARIANTS:
        yield Case("cross_entropy", "large", _VOCABULARY, "bfloat16", variant=variant)
    # Where rows are many and short, the time for the mean's divisor shows beside a sum.
    yield Case("cross_entropy", "large", (65536, 1000), "bfloat16", variant="sum")
    others = [loss for loss in LOSSES if loss not in _COMMON]
    for loss in others:
        yield _large(loss, "bfloat16")
    yield Case("multi_margin_loss", "large", (8388608, 10), "bfloat16")
    for loss, variant in _ELEMENT_VARIANTS:
        yield replace(_large(loss, "bfloat16"), variant=variant)
    for loss in (*_COMMON[1:], *others):
        yield _large(loss, "float32")
    yield from _classes("float32", _OTHER_CLASSES)
    yield Case("linear_cross_entropy", "large", _HEADS[0], "float32")


def _large(loss: str, dtype: str) -> Case:
    """A loss at the shape that is usual for its kind of input."""
    return Case(loss, "large", _SHAPES[LOSSES[loss].shapes], dtype)


def _classes(dtype: str, shapes: Sequence[Shape]) -> Iterator[Case]:
    for shape in shapes:
        yield Case("cross_entropy", "large", shape, dtype)


def providers_of(case: Case) -> list[str]:
    """The providers that are measured on a case, those that others are compared with first."""
    if case.head is not None:
        strategies: Sequence[str] = ("linear", "inplace")
        others = [PRODUCTS, EAGER, COMPILE]
        peers = [name for name in PROVIDERS if name.startswith("torch ")] + PEERS
    elif case.variant == USUAL:
        strategies, others, peers = STRATEGIES, [EAGER, COMPILE], PEERS
    else:
        # Peers have other names for options, and a slice cannot be overwritten.
        strategies, others, peers = STRATEGIES[:2], [EAGER, COMPILE], []
    own = [f"{backend} {strategy}" for backend in BACKENDS for strategy in strategies]
    return [name for name in (*others, *own, *peers) if name == PRODUCTS or name in serving(case, [name])]

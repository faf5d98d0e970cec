"""The losses of distances between vectors."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fused_losses.functional as L
from kit.cases.case import Case, inputs_of, integers, normal, numbers, option_name, shape_name, uniform

TRIPLET, WITH_DISTANCE, COSINE = (
    "triplet_margin_loss",
    "triplet_margin_with_distance_loss",
    "cosine_embedding_loss",
)

# Vectors that fill no register, some, several chunks (1024) with a tail, several pieces (32768) with a tail;
# one vector; vectors of one element; batches of batches; none. The last three a GPU keeps in registers: by a
# few threads for each vector, in several turns, and by a block.
SHAPES = (
    (7,),
    (3, 1),
    (33, 10),
    (5, 131),
    (4, 1025),
    (2, 40000),
    (2, 3, 7),
    (0, 4),
    (33, 128),
    (300, 96),
    (3, 2048),
)

NORMS: tuple[dict[str, Any], ...] = (
    {"p": 1.0},
    {"p": 1.5},
    {"p": 3.0},
    {"p": torch.inf},
    {"p": -torch.inf},
    {"margin": 0.3, "eps": 1e-3, "swap": True},
    {"p": 1.0, "swap": True},
    {"p": torch.inf, "swap": True},
)

DISTANCES: tuple[dict[str, Any], ...] = (
    {"distance_function": torch.nn.PairwiseDistance(p=1)},
    {"distance_function": partial(F.pairwise_distance, p=3)},
    {"distance_function": L.cosine_distance},
    {"distance_function": L.cosine_distance, "margin": 0.3, "swap": True},
    {"distance_function": L.euclidean_distance},
    {"swap": True},
)


def cases() -> Iterator[Case]:
    yield from shape_cases()
    yield from broadcast_cases()
    yield from value_cases()


def shape_cases() -> Iterator[Case]:
    """Over shapes, and over a few of them with every distance."""
    for shape in SHAPES:
        for name in (TRIPLET, WITH_DISTANCE, *[COSINE] * (len(shape) <= 2)):
            yield Case(shape_name(shape), name, inputs_of(name, *shape))
    for name, choices in ((TRIPLET, NORMS), (WITH_DISTANCE, DISTANCES), (COSINE, ({"margin": 0.1},))):
        for i, options in enumerate(choices):
            # Rows that threads share, for every other choice.
            for shape in ((33, 10), (2, 40000))[: 1 + i % 2]:
                operands = inputs_of(name, *shape)
                yield Case(shape_name(shape) + option_name(options), name, operands, options)


def broadcast_cases() -> Iterator[Case]:
    """One vector for all others, whose gradient is a sum; signs of every sort."""
    anchor, positive, negative = inputs_of(TRIPLET, 33, 10)
    for label, some in {
        "one-anchor": (anchor[:1], positive, negative),
        "one-positive": (anchor, positive[:1], negative),
        "one-negative": (anchor, positive, negative[:1]),
    }.items():
        yield Case(label, TRIPLET, some, {"swap": True})
        yield Case(label, WITH_DISTANCE, some, {"distance_function": L.cosine_distance})
    x, y, signs = inputs_of(COSINE, 33, 10)
    for label, some in {
        "one-first": (x[:1], y, signs),
        "one-second": (x, y[:1], signs),
        "one-sign": (x, y, signs[:1]),
        "integers": (x, y, integers(-1, 2, 33)),
        "vector": (x[0], y[0], numbers(1.0)[0]),
        "similar": (x, x + 0.1 * y, torch.ones(33, dtype=torch.float64)),
        "neither": (x, y, uniform(33)),
    }.items():
        yield Case(label, COSINE, some)


def value_cases() -> Iterator[Case]:
    """Vectors that are the same, zero, tied, and far from everything."""
    anchor, positive, negative = inputs_of(TRIPLET, 9, 20)
    grid = integers(-2, 3, 3, 9, 20).double()
    triplets: dict[str, tuple[Tensor, ...]] = {
        "same": (anchor, anchor, anchor),
        "anchor-is-positive": (anchor, anchor, negative),  # the two ways to the negative tie
        "ties": tuple(grid),
        "zeros": tuple(torch.zeros(3, 9, 20, dtype=torch.float64)),
        "infinite": (torch.where(torch.arange(20) == 3, torch.inf, anchor), positive, negative),
        "nan": (anchor, positive, torch.where(torch.arange(20) == 3, torch.nan, negative)),
        "large": (anchor * 1e3, positive * 1e3, negative * 1e3),
    }
    for label, operands in triplets.items():
        for swap in (False, True):
            for p in (1.0, 2.0, 3.0, torch.inf):
                yield Case(f"{label}-{p}-{swap}", TRIPLET, operands, {"p": p, "swap": swap})
            for distance in (L.cosine_distance, L.euclidean_distance):
                options = {"distance_function": distance, "swap": swap}
                yield Case(label + option_name(options), WITH_DISTANCE, operands, options)
    # Of a difference near 0, no one knows the root.
    yield Case("p=0.5", TRIPLET, inputs_of(TRIPLET, 33, 10), {"p": 0.5})
    # A gap of exactly 0.
    step = numbers(0.25, 0.25, 0.25, 0.25).expand(3, 4)
    yield Case("gap-0", TRIPLET, (step * 0, step * 0, step), {"p": 1.0, "eps": 0.0})
    x, y, signs = inputs_of(COSINE, 9, 20)
    for label, some in {
        "same": (x, x, signs),
        "opposite": (x, -x, signs),
        "zero": (x * 0, y, signs),
        "zeros": (x * 0, y * 0, signs),
        "infinite": (torch.where(torch.arange(20) == 3, torch.inf, x), y, signs),
        "nan": (torch.where(torch.arange(9)[:, None] == 3, torch.nan, x), y, signs),
        "large": (normal(9, 20) * 1e3, y * 1e3, signs),
    }.items():
        yield Case(label, COSINE, some)

"""Vectors, their shapes and dtypes, norms and distances: torch's values or its exception."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from kit.refusals import same


@pytest.mark.parametrize("name", ("triplet_margin_loss", "triplet_margin_with_distance_loss"))
def test_triplets(name):
    operands = [torch.randn(4, 3) for _ in range(3)]
    for i, x in enumerate(operands):
        for other in (
            x[:3],
            x[:1],
            x[:, :1],
            x[:, :2],
            x[0],
            x[None],
            x[0, 0],
            x.double(),
            x.bfloat16(),
            x.long(),
            x.cfloat(),
        ):
            for reduction in ("mean", "none"):
                same(name, *operands[:i], other, *operands[i + 1 :], reduction=reduction)
    for options in (
        {"margin": 0.0},
        {"margin": -1.0},
        {"margin": 2},
        {"reduction": "average"},
        {"swap": True},
    ):
        same(name, *operands, **options)
    for reduction in ("mean", "sum", "none"):
        same(name, *(x[:0] for x in operands), reduction=reduction)
        same(name, *(x[:, :0] for x in operands), reduction=reduction)
        same(name, *(x[0] for x in operands), reduction=reduction)
        same(name, *(x[0, 0] for x in operands), reduction=reduction)


def test_norms_and_distances():
    operands = [torch.randn(4, 3) for _ in range(3)]
    for p in (0, 0.5, 1, 2, 3, -1, torch.inf, -torch.inf, torch.nan):
        for eps in (0.0, 1e-6, 1):
            same("triplet_margin_loss", *operands, p=p, eps=eps)
    for distance in (
        F.pairwise_distance,
        torch.nn.PairwiseDistance(p=3, eps=0.1),
        torch.nn.PairwiseDistance(keepdim=True),
        functools.partial(F.pairwise_distance, p=1, keepdim=True),
        functools.partial(F.pairwise_distance, p=0),
        lambda x, y: (x - y).abs().amax(1),
        lambda x, y: 1 - F.cosine_similarity(x, y),
        torch.cdist,
    ):
        same("triplet_margin_with_distance_loss", *operands, distance_function=distance)


def test_cosine_embedding():
    name = "cosine_embedding_loss"
    x, y, t = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([1.0, -1.0, -1.0, 1.0])
    for target in (t[:3], t[:1], t[0], t[:, None], t[None], t.long(), t.int(), t.double(), t.bool(), t * 0.5):
        for reduction in ("mean", "none"):
            same(name, x, y, target, reduction=reduction)
    for other in (y[:1], y[:3], y[:, :1], y[0], y[None], y.double(), y.bfloat16(), y.long()):
        same(name, x, other, t)
        same(name, other, y, t)
    for target in (t[0], t[:1], t):
        same(name, x[0], y[0], target)
    for margin in (-1.0, 0, 0.5, 2.0):
        same(name, x, y, t, margin=margin)
    for reduction in ("mean", "sum", "none", "average"):
        same(name, x[:0], y[:0], t[:0], reduction=reduction)
        same(name, x[:, :0], y[:, :0], t, reduction=reduction)

"""Losses of distances between vectors; a distance gives its value, and derivatives by both vectors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fused_losses.functional as L
from kit.exact.terms import EPSILON, Exact, sign, total, where


def _norm(x, y, p=2.0, eps=1e-6):
    d = x - y + eps
    size = abs(d)
    if np.isinf(p):
        value = (size.max if p > 0 else size.min)(-1, keepdims=True)
        ties = (size == value) | np.isnan(size)
        slope = sign(d) * ties / ties.sum(-1, keepdims=True)
    else:
        value = (size**p).sum(-1, keepdims=True) ** (1 / np.longdouble(p))
        slope = np.where(((d == 0) & (p < 2)) | (value == 0), 0, sign(d) * (size / value) ** (p - 1))
    return value[..., 0], (slope,), (-slope,)


def _cosine(x, y):
    def length(v):
        return np.sqrt((v * v).sum(-1, keepdims=True))

    def along(v):
        return np.where(length(v) == 0, 0, cosine * v / (np.maximum(length(v), 1e-8) * length(v)))

    lengths = np.maximum(length(x), 1e-8) * np.maximum(length(y), 1e-8)
    cosine = (x * y).sum(-1, keepdims=True) / lengths
    return 1 - cosine[..., 0], (along(x), -y / lengths), (along(y), -x / lengths)


def _distance_of(function: Callable[..., Tensor] | None) -> Callable[..., Any]:
    if isinstance(function, torch.nn.PairwiseDistance):
        return partial(_norm, p=function.norm, eps=function.eps)
    if isinstance(function, partial):
        return partial(_norm, **function.keywords)
    return {None: _norm, L.euclidean_distance: partial(_norm, eps=0), L.cosine_distance: _cosine}[function]


def _triplet(distance, anchor, positive, negative, margin=1.0, swap=False):
    to_p, a_to_p, p_to_a = distance(anchor, positive)
    to_n, a_to_n, n_to_a = distance(anchor, negative)
    between, p_to_n, n_to_p = distance(positive, negative) if swap else (np.inf, (), ())
    share = np.where(to_n < between, 1, np.where(to_n > between, 0, np.longdouble(0.5)))
    gap = (margin, to_p, -np.minimum(to_n, between))
    share, active = share[..., None], (total(gap) > 0)[..., None]
    derivatives = [
        tuple(active * factor * term for factor, terms in parts for term in terms)
        for parts in (
            ((1, a_to_p), (-share, a_to_n)),
            ((1, p_to_a), (share - 1, p_to_n)),
            ((-share, n_to_a), (share - 1, n_to_p)),
        )
    ]
    return Exact(where(~(total(gap) <= 0), *gap), derivatives, axis=-1)


def triplet_margin_loss(*vectors, p=2.0, eps=1e-6, **options):
    return _triplet(partial(_norm, p=p, eps=eps), *vectors, **options)


def triplet_margin_with_distance_loss(*vectors, distance_function=None, **options):
    return _triplet(_distance_of(distance_function), *vectors, **options)


def cosine_embedding_loss(x1, x2, t, margin=0.0):
    square_1, square_2 = ((x * x).sum(-1, keepdims=True) + EPSILON for x in (x1, x2))
    norms = np.sqrt(square_1 * square_2)
    cosine = (x1 * x2).sum(-1, keepdims=True) / norms
    angle, gap = cosine[..., 0], cosine[..., 0] - margin
    value = (*where(t == 1, 1, -angle), *where((t == -1) & ~(gap <= 0), angle, -margin))
    sign = np.where(t == 1, -1, (t == -1) & (gap > 0))[..., None]
    pairs = (x2 / norms, -cosine * x1 / square_1), (x1 / norms, -cosine * x2 / square_2)
    return Exact(value, [(sign * one, sign * other) for one, other in pairs], axis=-1)


FORMULAS: dict[str, Callable[..., Exact]] = {
    "cosine_embedding_loss": cosine_embedding_loss,
    "triplet_margin_loss": triplet_margin_loss,
    "triplet_margin_with_distance_loss": triplet_margin_with_distance_loss,
}

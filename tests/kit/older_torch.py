"""Torch's losses as torch 2.14 has them, where an older version differs.

Kernels have one semantics, that of 2.14, whatever the version: with an older one, tests judge them by these.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

TORCH = tuple(map(int, torch.__version__.split(".")[:2]))

makes_documents = pytest.mark.skipif(
    TORCH < (2, 14), reason="the documents' tables are made with torch 2.14, whose signatures they show"
)


def _reduced(losses: Tensor, reduction: str) -> Tensor:
    return losses if reduction == "none" else getattr(losses, reduction)()


def _flat_at_its_kink(name: str) -> Callable[..., Tensor]:
    """Of the positive part of something: where that is 0, torch's `clamp_min` had slope 1 before 2.14."""

    def loss(*operands: Tensor, reduction: str = "mean", **options) -> Tensor:
        losses = getattr(F, name)(*operands, **options, reduction="none")
        flat = ~(losses > 0)
        if name == "cosine_embedding_loss":
            flat &= options.get("target", operands[-1]) == -1
        return _reduced(torch.where(flat, losses.detach(), losses), reduction)

    return loss


def hinge_embedding_loss(
    input: Tensor, target: Tensor, *, margin: float = 1.0, reduction: str = "mean"
) -> Tensor:
    """The same; but for a target that is neither 1 nor -1, the loss is a sum of two."""
    gap = margin - input
    far = torch.where(target != 1, torch.where(gap > 0, gap, gap.detach().clamp_min(0)), 0)
    return _reduced(far + torch.where(target != -1, input, 0), reduction)


def mse_loss(input: Tensor, target: Tensor, **options) -> Tensor:
    """With operands of two dtypes, the backward raised before torch 2.13."""
    dtype = torch.result_type(input, target)
    return F.mse_loss(input.to(dtype), target.to(dtype), **options)


LOSSES: dict[str, Callable[..., Tensor]] = {}
"""By name, those of which the installed version is too old."""
if TORCH < (2, 14):
    LOSSES |= {
        name: _flat_at_its_kink(name)
        for name in (
            "margin_ranking_loss",
            "cosine_embedding_loss",
            "triplet_margin_loss",
            "triplet_margin_with_distance_loss",
        )
    }
    LOSSES["hinge_embedding_loss"] = hinge_embedding_loss
if TORCH < (2, 13):
    LOSSES["mse_loss"] = mse_loss

"""What the tests of a softmax's terms have in common: operands, options, and what is made of results."""

from __future__ import annotations

import pytest
import torch

from kit import composed
from kit.cases import DTYPES
from kit.cases.case import integers, normal, uniform
from kit.cases.classes import TERMS

RETURNED = ("lse", "z_loss", "accuracy", "argmax")
EVERYTHING = {f"return_{name}": True for name in RETURNED}

# Short rows and long ones, a row of several stretches with a tail, images, a single row.
SHAPES = ((33, 10), (9, 131), (2, 33001), (2, 21, 9, 11), (70,))

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_reduction = pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
each_target = pytest.mark.parametrize("probabilities", (False, True), ids=("labels", "probabilities"))
each_term = pytest.mark.parametrize("terms", ({}, *({k: v} for k, v in TERMS.items()), TERMS), ids=str)


def operands(shape, dtype=torch.float64, probabilities=False):
    """Logits; labels of which every fifth is ignored, or probabilities; weights of classes."""
    axis = min(1, len(shape) - 1)
    logits, weight = (normal(*shape) * 3).to(dtype), (uniform(shape[axis]) + 0.1).to(dtype)
    if probabilities:
        return logits, normal(*shape, seed=3).softmax(axis).to(dtype), weight
    labels = integers(0, shape[axis], *shape[:axis], *shape[axis + 1 :])
    if labels.dim():
        labels.view(-1)[::5] = -100
        # Some of the others are right, or nothing would be seen of the accuracy.
        right = logits.argmax(axis).view(-1)[1::5]
        labels.view(-1)[1::5] = right
    return logits, labels, weight


def total(out):
    """All that is differentiable, with upstream gradients of every sign and none alike."""
    rows = torch.linspace(-1, 1.5, out.lse.numel(), dtype=out.lse.dtype).view(out.lse.shape)
    return out.loss.sum() + (rows * out.lse).sum() + 2 * out.z_loss.sum()


def assert_all_close(mine, theirs, dtype, **tolerances):
    for name, one, other in zip(composed.CrossEntropyOutput._fields, mine, theirs, strict=True):
        if name == "argmax":
            assert torch.equal(one, other)
        elif one is not None:
            torch.testing.assert_close(one, other.to(one.dtype), equal_nan=True, **tolerances, msg=name)

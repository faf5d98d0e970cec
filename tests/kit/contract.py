"""Calls of every loss for the tests of the backward contract: operands, and the gradients that torch has."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fused_losses.registry import LOSSES
from kit.cases import Case, inputs_of

LABELS = torch.tensor([3, 0, -100, 6, 2, 1, 5, 4])

each_loss = pytest.mark.parametrize("name", LOSSES)
each_reduction = pytest.mark.parametrize("reduction", ("mean", "sum", "none"))

ONCE = ("multi_margin_loss", "multilabel_margin_loss")
"""Losses that torch can differentiate only once, and in reverse."""


def case_of(name: str, dtype: torch.dtype = torch.float64) -> Case:
    first, second, *rest = inputs_of(name, 8, 7, seed=1)
    if name in ("cross_entropy", "nll_loss"):
        second = LABELS
    options = {"p": 2} if name == "multi_margin_loss" else {}  # so that there is a second derivative
    if name == "sigmoid_focal_loss":
        options = {"reduction": "mean"}  # which it does not have by default
    return Case(name, name, (first, second, *rest), options).cast(dtype)


def call(case: Case, loss, *operands: Tensor, **options) -> Tensor:
    """`loss` (ours or torch's) of the case, but for its first operands."""
    return loss(*operands, *case.operands[len(operands) :], **{**case.options, **options})


def expected(case: Case, upstream: Tensor | float = 1.0, **options) -> Tensor:
    input = case.operands[0].detach().requires_grad_()
    loss = call(case, case.torchs, input, **options)
    return torch.autograd.grad(loss, input, torch.as_tensor(upstream, dtype=loss.dtype).expand_as(loss))[0]

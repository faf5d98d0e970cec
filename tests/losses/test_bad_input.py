"""Calls that torch refuses, or warns of: what several families share, and an input in place that stays."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from kit.cases import inputs_of
from kit.refusals import same

import fused_losses
import fused_losses.functional as L
from fused_losses.registry import LOSSES, TWINS

LOGITS = torch.randn(4, 3)


def test_an_error_leaves_the_input_alone_inplace():
    before = torch.rand(4, 3)
    input = before.clone().requires_grad_() * 1
    with pytest.raises(IndexError):
        L.cross_entropy(input, torch.tensor([0, 1, 2, 3]), backward="inplace")
    assert torch.equal(input, before)
    before[3, 2] = 1.5
    input = before.clone().requires_grad_() * 1
    with pytest.raises(RuntimeError, match="between 0 and 1"):
        L.binary_cross_entropy(input, torch.rand(4, 3), backward="inplace")
    assert torch.equal(input, before)


@pytest.mark.parametrize("name", ("soft_margin_loss", "multi_margin_loss", "nll_loss"))
def test_targets_that_cannot_have_a_gradient(name):
    x = torch.randn(4, 3, requires_grad=True)
    same(name, x, torch.ones(4, 3, requires_grad=True))


@pytest.mark.parametrize("name", ("smooth_l1_loss", "kl_div"))
def test_legacy_reductions(name):
    operands = inputs_of(name, 4, 3)
    for options in ({"size_average": False}, {"reduce": False}, {"size_average": True, "reduce": True}):
        same(name, *operands, **options)


def test_legacy_arguments_warn_and_work():
    target = torch.tensor([0, 1, 2, 0])
    for options in ({"size_average": False}, {"reduce": False}, {"size_average": True, "reduce": True}):
        with pytest.warns(UserWarning, match="size_average and reduce args will be deprecated"):
            ours = L.cross_entropy(LOGITS, target, **options)
        torch.testing.assert_close(ours, F.cross_entropy(LOGITS, target, **options))


def test_broadcasting_warns_at_the_caller():
    with pytest.warns(UserWarning, match="Using a target size") as caught:
        L.mse_loss(torch.rand(4, 3), torch.rand(3))
    assert caught[0].filename == __file__


def test_backward_must_be_known():
    with pytest.raises(ValueError, match="backward must be"):
        L.cross_entropy(LOGITS, torch.zeros(4, dtype=torch.long), backward="fast")


@pytest.mark.parametrize("name", TWINS)
def test_sparse_operands(name):
    operands = inputs_of(name, 4, 3)
    for k in range(len(operands)):
        same(name, *(x.to_sparse() if i == k else x for i, x in enumerate(operands)), **LOSSES[name].call)


def test_many_dimensions():
    """More than kernels are given strides for: torch's own function runs, as it does without this package."""
    shape = (2,) * 9
    x, t = torch.rand(shape), torch.rand(shape).permute(*reversed(range(9)))
    assert "up to 8 dimensions" in fused_losses.explain(L.mse_loss, x, t)
    same("mse_loss", x, t)
    with pytest.raises(RuntimeError, match="at most 8 dimensions"):
        torch.ops.fused_losses.mse_loss(x, t, None, None, [], None, 1, None, 0)
    for name in ("cross_entropy", "nll_loss"):
        same(name, x, torch.zeros((2, *shape[2:]), dtype=torch.long))
    same("mse_loss", x[0], t[0])

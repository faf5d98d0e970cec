"""What `explain` says of losses over a linear head: the strategy that runs, and why not another."""

from __future__ import annotations

import pytest
import torch

import fused_losses
from fused_losses import functional as L

EACH_ROW = "recompute, because each loss has an upstream gradient of its own, which must be known first"


def said_of(**options):
    x, weight = torch.randn(6, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    return fused_losses.explain(
        L.linear_cross_entropy, x, weight, torch.tensor([0, 1, 2, 3, 4, 0]), **options
    )


@pytest.mark.parametrize(
    ("options", "strategy"),
    (
        ({}, "fused, as asked for"),
        ({"reduction": "sum"}, "fused, as asked for"),
        ({"backward": "recompute"}, "recompute, as asked for"),
        ({"reduction": "none", "backward": "recompute"}, "recompute, as asked for"),
        ({"reduction": "none"}, EACH_ROW),
    ),
)
def test_the_strategy_that_runs(options, strategy, monkeypatch):
    from fused_losses.linear import choice

    ran = []
    apply = choice.LinearLoss.apply
    monkeypatch.setattr(choice.LinearLoss, "apply", lambda *all: (ran.append(all[0]), apply(*all))[1])
    said = said_of(**options)
    assert said.endswith(strategy)
    assert ran == [strategy.split(",")[0]]


def test_hooks_and_no_gradients():
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        assert said_of().endswith("recompute, because hooks are to see all tensors that are saved")
    with torch.no_grad():
        assert said_of().endswith("without gradients: none is asked for")

"""Sparse targets of losses over a linear head: what dense ones of the same numbers give."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F
from kit.linear_head import SMALL, N, V, chunked, head, results

import fused_losses
import fused_losses.functional as L
from fused_losses.registry import LOSSES

GENERATOR = torch.Generator().manual_seed(6)
FEW = torch.rand(N, V, generator=GENERATOR) * (torch.rand(N, V, generator=GENERATOR) < 0.05)
OTHERS = {
    "gaussian_nll_loss": {"var": torch.rand(N, V, generator=GENERATOR) + 0.1},
    "margin_ranking_loss": {"input2": torch.randn(N, V, generator=GENERATOR)},
}
# Their inputs are no raw numbers, or their targets are classes, or they have other operands than a target.
NO_SUCH_TARGET = (
    "binary_cross_entropy",
    "nll_loss",
    "multi_margin_loss",
    "cosine_embedding_loss",
    "triplet_margin_loss",
    "triplet_margin_with_distance_loss",
)


def twice(dense):
    """The sparse tensor in which each element is the sum of two."""
    once = (dense / 2).to_sparse()
    indices, values = (torch.cat([part, part], -1) for part in (once.indices(), once.values()))
    return torch.sparse_coo_tensor(indices, values, dense.shape)


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in NO_SUCH_TARGET])
def test_every_loss(name):
    assert LOSSES[name].target_name in inspect.signature(getattr(L, name)).parameters
    is_labels = name == "multilabel_margin_loss"
    dense = (FEW > 0).long() if is_labels else FEW

    def loss(x, weight, bias, **keywords):  # not linear_cross_entropy, which takes what torch's takes
        return L.linear_loss(x, weight, loss=name, linear_bias=bias, workspace=SMALL, **keywords)

    for reduction in ("mean", "sum", "none") + (("batchmean",) if name == "kl_div" else ()):
        expected, *others = (
            results(loss, head(), torch.ones_like, target=t, reduction=reduction, **OTHERS.get(name, {}))
            for t in (dense, dense.to_sparse(), *(() if is_labels else (twice(dense),)))
        )
        for mine in others:
            torch.testing.assert_close(mine, expected)


def by_torch(x, weight, bias, target, **keywords):
    return F.kl_div(F.linear(x, weight, bias).log_softmax(1), target.to_dense(), **keywords)


@pytest.mark.parametrize("reduction", ("mean", "sum", "batchmean", "none"))
@pytest.mark.parametrize("log_target", (False, True), ids=("probabilities", "logarithms"))
def test_divergence(log_target, reduction):
    """Torch takes no sparse target. Logarithms of probabilities are sparse where these are 1."""
    target = (FEW.log() if log_target else FEW).where(FEW > 0, 0).to_sparse()
    keywords = {"target": target, "reduction": reduction, "log_target": log_target}
    mine = results(chunked("kl_div"), head(), torch.ones_like, **keywords)
    for one, other in zip(mine, results(by_torch, head(), torch.ones_like, **keywords), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6 * float(other.abs().max()))


def test_divergence_goes_chunk_by_chunk():
    x, weight, _ = head()
    said = fused_losses.explain(L.linear_loss, x, weight, FEW.to_sparse(), "kl_div", reduction="batchmean")
    assert "chunks of" in said


def test_divergence_differentiated_twice_and_by_its_target():
    sparse = FEW.to_sparse()
    seconds = []
    for function, target in ((chunked("kl_div"), sparse), (by_torch, FEW)):
        operands = head()
        first = torch.autograd.grad(function(*operands, target=target), operands, create_graph=True)
        seconds.append(torch.autograd.grad(sum(x.square().sum() for x in first), operands))
    torch.testing.assert_close(*seconds)
    gradients = []
    for function in (
        lambda *head, **k: L.linear_loss(*head[:2], loss="kl_div", linear_bias=head[2], **k),
        by_torch,
    ):
        leaf = sparse.clone().requires_grad_()
        function(*head(), target=leaf, reduction="sum").backward()
        gradients.append(leaf.grad.to_dense())
    torch.testing.assert_close(*gradients)
    assert gradients[0].any()

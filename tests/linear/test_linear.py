"""Losses over a linear head: torch's composition of a linear layer and a loss is what they are judged by."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F
from kit.linear_head import (
    LABELS,
    PROBABILITIES,
    WEIGHT,
    D,
    N,
    V,
    assert_same,
    by_dtype_and_products,
    chunked,
    composed,
    exact_head,
    head,
    results,
    with_torchs_own,
)

import fused_losses
import fused_losses.functional as L
from fused_losses.registry import LOSSES


@by_dtype_and_products
@pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
@pytest.mark.parametrize(
    "keywords",
    (
        {"target": LABELS},
        {"target": LABELS.clamp(0), "weight": WEIGHT, "label_smoothing": 0.1, "ignore_index": 7},
        {"target": PROBABILITIES, "weight": WEIGHT},
    ),
    ids=("labels", "weights", "probabilities"),
)
def test_cross_entropy(keywords, reduction, dtype, cpu_products):
    scaled = lambda loss: torch.linspace(0.5, 2, loss.numel()).view(loss.shape).to(loss)  # noqa: E731
    for upstream in (torch.ones_like, scaled):
        for strategy in ("fused", "recompute"):
            more = {"backward": strategy}
            assert_same("cross_entropy", dtype, upstream=upstream, more=more, reduction=reduction, **keywords)


def test_positions_of_several_dimensions():
    target = torch.randint(0, 5, (N, 3, 4))
    target[::3, 1] = 2
    for keywords in ({"target": target, "ignore_index": 2}, {"target": torch.rand(N, 5, 3, 4)}):
        for reduction in ("mean", "none"):
            operands = head(classes=(5, 3, 4))
            assert_same("cross_entropy", torch.float32, operands, reduction=reduction, **keywords)


@with_torchs_own
def test_a_single_row():
    x, weight, bias = head()
    for target in (torch.tensor(3), torch.rand(V)):
        for reduction in ("none", "mean"):
            mine = L.linear_cross_entropy(x[0], weight, target, linear_bias=bias, reduction=reduction)
            theirs = F.linear_cross_entropy(x[0], weight, target, linear_bias=bias, reduction=reduction)
            torch.testing.assert_close(mine, theirs)
            of_mine, of_theirs = (torch.autograd.grad(loss, (x, weight, bias)) for loss in (mine, theirs))
            torch.testing.assert_close(of_mine, of_theirs)


@with_torchs_own
@pytest.mark.parametrize("rows", (slice(0, 0), slice(5, 20)), ids=("none", "ignored"))
def test_of_no_rows_that_count(rows):
    x, weight, bias = head()
    for reduction in ("mean", "sum", "none"):
        call = {"linear_bias": bias, "reduction": reduction}
        mine = L.linear_cross_entropy(x[rows], weight, LABELS[rows], **call)
        theirs = F.linear_cross_entropy(x[rows], weight, LABELS[rows], **call)
        torch.testing.assert_close(mine, theirs, equal_nan=True)
        assert mine.isnan().all() if reduction == "mean" else not mine.any()
        for gradient in torch.autograd.grad(mine, (x, weight, bias), torch.ones_like(mine)):
            assert not gradient.any()


EXTRA = {
    "margin_ranking_loss": {"margin": 0.3},
    "multi_margin_loss": {"p": 2},
    "huber_loss": {"delta": 0.7},
    "kl_div": {"reduction": "batchmean"},
    "poisson_nll_loss": {"full": True},
    "triplet_margin_with_distance_loss": {"distance_function": L.cosine_distance},
}

DERIVATIVE_JUMPS = (
    "l1_loss",
    "margin_ranking_loss",
    "hinge_embedding_loss",
    "multi_margin_loss",
    "multilabel_margin_loss",
    "triplet_margin_loss",
    "triplet_margin_with_distance_loss",
    "cosine_embedding_loss",
)


@by_dtype_and_products
@pytest.mark.parametrize(
    "name", [name for name in LOSSES if name not in ("nll_loss", "binary_cross_entropy")]
)
def test_every_loss(name, dtype, cpu_products):
    # Of those two, input is no raw number of a head: log-probabilities, probabilities.
    inputs = LOSSES[name].inputs((N, V), torch.Generator().manual_seed(4))
    names = list(inspect.signature(getattr(L, name)).parameters)[1 : len(inputs)]
    keywords = dict(zip(names, inputs[1:], strict=True))
    for reduction in ("mean", "sum", "none"):
        options = {"reduction": reduction, **EXTRA.get(name, {})}
        operands = exact_head(dtype) if name in DERIVATIVE_JUMPS else head(dtype)
        assert_same(name, dtype, operands, **options, **keywords)


@pytest.mark.parametrize("name", ("l1_loss", "mse_loss", "huber_loss"))
def test_means_over_weights(name):
    assert_same(name, torch.float32, target=torch.randn(N, V), weight=torch.rand(N, V))


def test_binary_options():
    target = torch.randint(-1, 2, (N, V)).float()
    weights = {"pos_weight": WEIGHT, "weight": torch.rand(N, 1)}
    operands = head()
    mine = chunked("binary_cross_entropy_with_logits")(*operands, target=target, ignore_index=-1, **weights)
    ours = L.binary_cross_entropy_with_logits
    theirs = composed("", ours)(*operands, target=target, ignore_index=-1, **weights)
    torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(torch.autograd.grad(mine, operands), torch.autograd.grad(theirs, operands))


def test_many_labels_may_be_sparse():
    dense = (torch.rand(N, V, generator=torch.Generator().manual_seed(5)) < 0.05).float()
    operands = head()
    name = "binary_cross_entropy_with_logits"
    for reduction in ("mean", "sum", "none"):
        one, other = (
            results(chunked(name), operands, torch.ones_like, target=target, reduction=reduction)
            for target in (dense, dense.to_sparse())
        )
        for mine, theirs in zip(one, other, strict=True):
            assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    "name", ("binary_cross_entropy_with_logits", "multilabel_soft_margin_loss", "mse_loss")
)
def test_sparse_targets_where_all_logits_are_made(name):
    """In a double backward, and for losses of rows that are sums of elements."""
    dense = (torch.rand(N, V, generator=torch.Generator().manual_seed(5)) < 0.05).float()
    operands = head()
    for target in (dense, dense.to_sparse()):
        loss = chunked(name)(*operands, target=target, reduction="none").square().mean()
        first = torch.autograd.grad(loss, operands, create_graph=True)
        second = torch.autograd.grad(sum(x.square().sum() for x in first), operands)
        if target is dense:
            expected = [*first, *second]
        else:
            torch.testing.assert_close([*first, *second], expected)


@pytest.mark.parametrize("name", ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"))
def test_targets_that_broadcast_warn_at_the_caller(name):
    x, weight, bias = (operand.detach() for operand in head())
    target = torch.rand(1, V)
    with pytest.warns(UserWarning, match="Using a target size") as caught:
        mine = L.linear_loss(x, weight, target, name, linear_bias=bias)
    assert [warning.filename for warning in caught] == [__file__]
    torch.testing.assert_close(mine, composed(name)(x, weight, bias, target=target.expand(N, V)))


@pytest.mark.parametrize("reduction", ("none", "mean", "sum"))
@pytest.mark.parametrize("name", ("hinge_embedding_loss", "poisson_nll_loss", "mse_loss"))
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_targets_of_more_dimensions_than_logits(name, reduction):
    """Their first dimension is none of rows, even where it has as many."""
    x, weight, bias = (operand.detach() for operand in head())
    target = torch.rand(N, N, V)
    mine = L.linear_loss(x, weight, target, name, linear_bias=bias, reduction=reduction, workspace=4 * V)
    torch.testing.assert_close(mine, composed(name)(x, weight, bias, target=target, reduction=reduction))


def test_divergence_of_logarithms():
    assert_same("kl_div", torch.float32, target=PROBABILITIES.log(), log_target=True, reduction="batchmean")
    assert_same("kl_div", torch.float32, target=PROBABILITIES * (PROBABILITIES > 0.01), reduction="sum")


def test_the_size_of_chunks_changes_little_and_runs_nothing():
    x, weight, bias = head()
    sizes = (1, 4 * V * 64, 1 << 20)
    every = [
        results(
            lambda *head, size=size: L.linear_cross_entropy(
                *head[:2], LABELS, linear_bias=head[2], workspace=size
            ),
            (x, weight, bias),
            torch.ones_like,
        )
        for size in sizes
    ]
    for other in every[1:]:
        torch.testing.assert_close(other, every[0])
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):  # torch 2.11 has none
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=3)
        by_options = L.linear_cross_entropy(x, weight, LABELS, linear_bias=bias, options=options)
        torch.testing.assert_close(by_options, every[0][0])
    said = fused_losses.explain(L.linear_cross_entropy, x, weight, LABELS, workspace=4 * V * 64)
    assert "chunks of 64 rows, fused, as asked for" in said


def test_layouts_of_the_head():
    x, weight, bias = head()
    for laid_out in (
        (x.detach().t().contiguous().t(), weight, bias),
        (x, weight.detach().t().contiguous().t(), bias),
        (x.detach()[::2].expand(N // 2, D), weight, bias.detach()[:1].expand(V)),
    ):
        operands = [operand.detach().requires_grad_() for operand in laid_out]
        target = LABELS[: operands[0].shape[0]]
        mine, theirs = (
            results(f("cross_entropy"), operands, torch.ones_like, target=target) for f in (chunked, composed)
        )
        for one, other in zip(mine, theirs, strict=True):
            torch.testing.assert_close(one, other)


class TestErrors:
    def both(self, kind, *operands, **keywords):
        for function in (L.linear_cross_entropy, F.linear_cross_entropy):
            with pytest.raises(kind):
                function(*operands, **keywords)

    @with_torchs_own
    def test_of_torch(self):
        x, weight, bias = head()
        self.both(IndexError, x, weight, torch.full((N,), V))
        self.both(IndexError, x, weight, torch.full((N,), -1))
        self.both((RuntimeError, ValueError), x, weight, LABELS[:-1])
        self.both(RuntimeError, x[:, :-1], weight, LABELS)
        self.both(RuntimeError, x, weight[0], LABELS)
        self.both(RuntimeError, x[None], weight, LABELS)
        self.both(RuntimeError, x, weight, LABELS, linear_bias=bias[:-1])
        self.both(RuntimeError, x, weight.double(), LABELS)
        self.both(RuntimeError, x, weight, PROBABILITIES, ignore_index=3)
        self.both(ValueError, x, weight, LABELS, reduction="median")
        self.both(RuntimeError, x, weight, LABELS, label_smoothing=2.0)
        self.both(RuntimeError, x, weight, LABELS, weight=WEIGHT[:-1])

    def test_of_this_package(self):
        x, weight, _ = head()
        for keywords in ({"workspace": 0}, {"backward": "inplace"}):
            with pytest.raises(ValueError):
                L.linear_cross_entropy(x, weight, LABELS, **keywords)
        with pytest.raises(ValueError, match="must be one of"):
            L.linear_loss(x, weight, LABELS, "ctc_loss")


@with_torchs_own
def test_the_module():
    torch.manual_seed(0)
    theirs = torch.nn.LinearCrossEntropyLoss(D, V, bias=True, label_smoothing=0.1)
    mine = fused_losses.LinearCrossEntropyLoss(D, V, bias=True, label_smoothing=0.1)
    mine.load_state_dict(theirs.state_dict())
    assert isinstance(mine, torch.nn.LinearCrossEntropyLoss)
    x = head()[0]
    (a := mine(x, LABELS)).backward()
    (b := theirs(x, LABELS)).backward()
    torch.testing.assert_close(a, b)
    for one, other in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)

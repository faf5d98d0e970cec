"""Losses over a linear head: torch's composition of a linear layer and a loss is what they are judged by."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F
from kit.tolerance import assert_as_accurate, eager_of

import fused_losses
import fused_losses.functional as L
from fused_losses.registry import LOSSES

N, D, V = 150, 24, 70
with_torchs_own = pytest.mark.skipif(
    not hasattr(F, "linear_cross_entropy"), reason="torch 2.11 has no linear_cross_entropy to compare with"
)
SMALL = 64 * V * 8  # a workspace of one chunk of 64 rows in float64, more of them in others
LABELS = torch.randint(0, V, (N,), generator=torch.Generator().manual_seed(1))
LABELS[5:20] = -100


def head(dtype=torch.float32, classes=(V,), rows=N):
    generator = torch.Generator().manual_seed(0)
    shapes = (rows, D), (*classes, D), classes
    scales = 1, D**-0.5, 1
    return [
        (torch.randn(shape, generator=generator) * scale).to(dtype).requires_grad_()
        for shape, scale in zip(shapes, scales, strict=True)
    ]


def exact_head(dtype):
    """A head whose logits are multiples of 1/8 below 16: every dtype holds them, however they are added up.

    Where a loss's derivative jumps, a logit that is rounded to 16 bits may lie on the other side of the jump
    than the exact one. Whether it does is a matter of chance, not of the loss's accuracy.
    """
    generator = torch.Generator().manual_seed(0)
    ranges = ((N, D), 1, 1), ((V, D), 3, 8), ((V,), 16, 8)
    return [
        (torch.randint(-most, most + 1, shape, generator=generator) / parts).to(dtype).requires_grad_()
        for shape, most, parts in ranges
    ]


def in_float64(tensor):
    return tensor.detach().double().requires_grad_(tensor.requires_grad)


def composed(name, function=None):
    function = function or eager_of(name)

    def loss(x, head, bias, **keywords):
        logits = F.linear(x, head.flatten(0, -2), bias.flatten()).unflatten(1, head.shape[:-1])
        if name == "kl_div":
            logits = logits.log_softmax(1)
        return function(logits, **keywords)

    return loss


def chunked(name, **more):
    def loss(x, head, bias, target=None, **keywords):
        if name == "cross_entropy":
            keywords |= {"workspace": SMALL} if "options" not in more else {}
            return L.linear_cross_entropy(x, head, target, linear_bias=bias, **keywords, **more)
        return L.linear_loss(x, head, target, name, linear_bias=bias, workspace=SMALL, **keywords, **more)

    return loss


def results(function, operands, upstream, **keywords):
    loss = function(*operands, **keywords)
    return [loss.detach(), *torch.autograd.grad(loss, operands, upstream(loss))]


def as_dtype(keywords, dtype):
    return {
        key: value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for key, value in keywords.items()
    }


def assert_same(name, dtype, operands=None, upstream=torch.ones_like, more=None, **keywords):
    operands = operands or head(dtype)
    wide = [in_float64(x.detach()).requires_grad_() for x in operands]
    exact = results(composed(name), wide, upstream, **as_dtype(as_dtype(keywords, dtype), torch.float64))
    eager = results(composed(name), operands, upstream, **as_dtype(keywords, dtype))
    ours = results(chunked(name, **(more or {})), operands, upstream, **as_dtype(keywords, dtype))
    for part, mine, theirs, reference in zip(
        ("loss", "input", "weight", "bias"), ours, eager, exact, strict=True
    ):
        largest = float(reference.abs().max())
        if dtype is torch.float64:  # which has no better reference
            torch.testing.assert_close(mine, reference, rtol=1e-13, atol=1e-14 * largest)
        else:
            # Products are sums: their terms are as large as the largest of them.
            assert_as_accurate(mine, theirs, reference, dtype=dtype, name=f"{name} {part}", terms=largest)


by_dtype_and_products = pytest.mark.parametrize(
    ("dtype", "cpu_products"),
    [
        (torch.float64, False),
        (torch.float32, False),
        *((dtype, natively) for dtype in (torch.bfloat16, torch.float16) for natively in (True, False)),
    ],
    indirect=["cpu_products"],
)
WEIGHT = torch.rand(V, generator=torch.Generator().manual_seed(2)) + 0.5
PROBABILITIES = torch.randn(N, V, generator=torch.Generator().manual_seed(3)).softmax(1)


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
        of_mine = torch.autograd.grad(mine, (x, weight, bias), torch.ones_like(mine))
        for gradient in of_mine:
            assert reduction == "mean" or not gradient.any()


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


def test_divergence_of_logarithms():
    assert_same("kl_div", torch.float32, target=PROBABILITIES.log(), log_target=True, reduction="batchmean")
    assert_same("kl_div", torch.float32, target=PROBABILITIES * (PROBABILITIES > 0.01), reduction="sum")


def test_only_gradients_that_are_needed():
    for wanted in range(8):
        operands = [x.detach().requires_grad_(bool(wanted >> i & 1)) for i, x in enumerate(head())]
        mine, theirs = (f("cross_entropy")(*operands, target=LABELS) for f in (chunked, composed))
        assert mine.requires_grad == bool(wanted)
        if wanted:
            of = [x for x in operands if x.requires_grad]
            torch.testing.assert_close(torch.autograd.grad(mine, of), torch.autograd.grad(theirs, of))


def test_a_target_that_requires_grad():
    operands, target = head(), PROBABILITIES.clone().requires_grad_()
    of = [*operands, target]
    mine, theirs = (
        torch.autograd.grad(f("cross_entropy")(*operands, target=target), of) for f in (chunked, composed)
    )
    torch.testing.assert_close(mine, theirs)


def test_ignored_rows_may_hold_anything():
    x, weight, bias = head()
    broken = x.detach().clone()
    broken[5:20] = torch.nan
    mine = chunked("cross_entropy")(broken.requires_grad_(), weight, bias, target=LABELS)
    mine.backward()
    whole = chunked("cross_entropy")(x, weight, bias, target=LABELS)
    assert torch.equal(mine, whole)
    assert torch.equal(broken.grad, torch.autograd.grad(whole, x)[0])


@pytest.mark.parametrize("strategy", ("fused", "recompute"))
def test_a_retained_graph(strategy):
    operands = head()
    loss = chunked("cross_entropy", backward=strategy)(*operands, target=LABELS)
    first = torch.autograd.grad(loss, operands, retain_graph=True)
    kept = [x.clone() for x in first]
    second = torch.autograd.grad(2 * loss, operands)
    for one, other, copy in zip(first, second, kept, strict=True):
        assert torch.equal(one, copy)
        torch.testing.assert_close(other, 2 * one)


def test_double_backward_and_transforms():
    operands = [
        x.detach()[: 6 if x.dim() == 1 else None].double().requires_grad_() for x in head(classes=(6,))
    ]
    operands[0] = operands[0].detach()[:9].requires_grad_()
    target = LABELS[:9] % 6

    def mine(*operands):
        return chunked("cross_entropy")(*operands, target=target)

    assert torch.autograd.gradcheck(mine, operands)
    assert torch.autograd.gradgradcheck(mine, operands)
    theirs = composed("cross_entropy")(*operands, target=target)
    expected = torch.autograd.grad(theirs, operands)
    torch.testing.assert_close(torch.func.grad(mine, (0, 1, 2))(*operands), expected)
    _, tangent = torch.func.jvp(mine, tuple(operands), tuple(torch.ones_like(x) for x in operands))
    torch.testing.assert_close(tangent, sum(x.sum() for x in expected))
    rows = torch.func.vmap(lambda x: L.linear_cross_entropy(x, operands[1], target, linear_bias=operands[2]))
    stacked = torch.stack([operands[0], operands[0] * 2])
    torch.testing.assert_close(rows(stacked)[0], theirs)


@pytest.mark.parametrize("dynamic", (False, True))
def test_compiled(dynamic):
    torch._dynamo.reset()
    operands = head()

    def step(*operands):
        losses = (
            L.linear_cross_entropy(*operands[:2], LABELS, linear_bias=operands[2], label_smoothing=0.1),
            L.linear_loss(*operands[:2], PROBABILITIES, "kl_div", reduction="batchmean"),
            L.linear_loss(*operands[:2], PROBABILITIES, "binary_cross_entropy_with_logits"),
            L.linear_cross_entropy(*operands[:2], LABELS, reduction="none").sum(),
        )
        return sum(2 * loss for loss in losses)

    expected = results(step, operands, torch.ones_like)
    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic)
    for mine, theirs in zip(results(compiled, operands, torch.ones_like), expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_autocast():
    operands = head()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mine, theirs = (f("cross_entropy")(*operands, target=LABELS) for f in (chunked, composed))
        low = chunked("cross_entropy")(operands[0].bfloat16(), *operands[1:], target=LABELS)
    assert mine.dtype is theirs.dtype is low.dtype is torch.float32
    for loss in (mine, low):
        torch.testing.assert_close(loss, theirs, rtol=2**-7, atol=0)
        for one, other in zip(
            torch.autograd.grad(loss, operands), torch.autograd.grad(theirs, operands), strict=False
        ):
            torch.testing.assert_close(one, other, rtol=0, atol=2**-6 * float(other.abs().max()))
            assert one.dtype is torch.float32
        theirs = composed("cross_entropy")(*operands, target=LABELS)


def test_checkpointed():
    operands = head()
    loss = torch.utils.checkpoint.checkpoint(
        lambda *operands: chunked("cross_entropy")(*operands, target=LABELS), *operands, use_reentrant=False
    )
    expected = torch.autograd.grad(composed("cross_entropy")(*operands, target=LABELS), operands)
    torch.testing.assert_close(torch.autograd.grad(loss, operands), expected)


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
    assert "chunks of 64 rows, fused" in said


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

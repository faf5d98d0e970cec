"""Laws that hold for any input, on inputs that hypothesis makes up."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from kit.cases import inputs_of

import fused_losses.functional as L
from fused_losses.registry import LOSSES

pytest.importorskip("numpy")
pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

pytestmark = pytest.mark.filterwarnings("ignore:reduction")

# The same examples on every machine; a failure is a failure, not a matter of luck.
exhaustive = settings(max_examples=150, deadline=None, derandomize=True)
numbers = st.floats(-50, 50, width=32)
matrices = hnp.arrays("float32", hnp.array_shapes(min_dims=2, max_dims=2, max_side=90), elements=numbers)
SYMMETRIC = ["mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"]
any_shape = hnp.arrays("float32", hnp.array_shapes(min_dims=0, max_dims=4, min_side=0), elements=numbers)


def gradient(loss, x: torch.Tensor) -> torch.Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(loss(x), x)[0]


@exhaustive
@given(matrices, st.integers(0, 2**31), st.floats(-1000, 1000, width=16))
def test_softmax_does_not_see_a_shift(logits, seed, shift):
    x = torch.from_numpy(logits).double()
    t = torch.randint(0, x.shape[1], x.shape[:1], generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(L.cross_entropy(x + shift, t), L.cross_entropy(x, t), rtol=1e-9, atol=1e-9)


@exhaustive
@given(matrices, st.integers(0, 2**31), st.sampled_from([0.0, 0.1, 1.0]))
def test_gradient_of_a_row_sums_to_zero(logits, seed, smoothing):
    x = torch.from_numpy(logits).double()
    t = torch.randint(0, x.shape[1], x.shape[:1], generator=torch.Generator().manual_seed(seed))
    sums = gradient(lambda x: L.cross_entropy(x, t, label_smoothing=smoothing, reduction="sum"), x).sum(1)
    torch.testing.assert_close(sums, torch.zeros_like(sums), rtol=0, atol=1e-12)


@exhaustive
@given(matrices, st.integers(0, 2**31))
def test_indices_are_one_hot_probabilities(logits, seed):
    x = torch.from_numpy(logits).double()
    t = torch.randint(0, x.shape[1], x.shape[:1], generator=torch.Generator().manual_seed(seed))
    hot = F.one_hot(t, x.shape[1]).double()
    for smoothing in (0.0, 0.2):
        loss = partial(L.cross_entropy, label_smoothing=smoothing)
        torch.testing.assert_close(loss(x, t), loss(x, hot))
        torch.testing.assert_close(
            gradient(partial(loss, target=t), x), gradient(partial(loss, target=hot), x)
        )


@exhaustive
@given(matrices, st.integers(0, 2**31), st.permutations(range(4)))
def test_classes_may_lie_anywhere(logits, seed, order):
    """The loss of an image is the same for every order of its dimensions in memory."""
    rows = torch.from_numpy(logits)
    x = rows.t().reshape(rows.shape[1], rows.shape[0], 1, 1).permute(1, 0, 2, 3).expand(-1, -1, 2, 3)
    t = torch.randint(0, x.shape[1], (x.shape[0], 2, 3), generator=torch.Generator().manual_seed(seed))
    inverse = [order.index(d) for d in range(4)]
    laid = x.permute(order).contiguous().permute(inverse)
    torch.testing.assert_close(
        L.cross_entropy(laid, t, reduction="none"), F.cross_entropy(x, t, reduction="none")
    )


@exhaustive
@given(any_shape, st.integers(0, 2**31), st.sampled_from(SYMMETRIC))
def test_errors_are_symmetric(values, seed, name):
    x = torch.from_numpy(values)
    t = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    loss = getattr(L, name)
    assert torch.equal(loss(x, t, reduction="none"), loss(t, x, reduction="none"))
    t.requires_grad_()
    x.requires_grad_()
    of_x, of_t = torch.autograd.grad(loss(x, t, reduction="sum"), [x, t])
    assert torch.equal(of_x, -of_t)


@exhaustive
@given(any_shape, st.integers(0, 2**31))
def test_logits_and_flipped_logits(values, seed):
    """BCE of -x for 1 - t is BCE of x for t."""
    x = torch.from_numpy(values).double()
    t = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    loss = L.binary_cross_entropy_with_logits
    torch.testing.assert_close(loss(x, t, reduction="none"), loss(-x, 1 - t, reduction="none"))


@exhaustive
@given(st.sampled_from(sorted(LOSSES)), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**31))
def test_reductions_reduce_what_none_returns(name, rows, columns, seed):
    operands, loss = inputs_of(name, rows, columns, seed=seed), getattr(L, name)
    elements = loss(*operands, reduction="none")
    torch.testing.assert_close(loss(*operands, reduction="mean"), elements.mean())
    torch.testing.assert_close(loss(*operands, reduction="sum"), elements.sum())


@exhaustive
@given(st.sampled_from(sorted(LOSSES)), st.integers(2, 40), st.integers(1, 40), st.integers(0, 2**31))
def test_rows_do_not_see_each_other(name, rows, columns, seed):
    operands, loss = inputs_of(name, rows, columns, seed=seed), partial(getattr(L, name), reduction="none")
    alone = torch.cat([loss(*(x[i : i + 1] for x in operands)) for i in range(rows)])
    torch.testing.assert_close(loss(*operands), alone, rtol=1e-12, atol=1e-12)


@exhaustive
@given(any_shape, st.integers(0, 2**31), st.floats(0.125, 8, width=16))
def test_corners_of_the_errors(values, seed, width):
    """Huber's is the parabola where it is wide, and scaled, the smooth absolute error."""
    x = torch.from_numpy(values).double()
    t = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    elements = {"reduction": "none"}
    half = L.mse_loss(x, t, **elements) / 2
    torch.testing.assert_close(L.huber_loss(x, t, delta=1e9, **elements), half)
    huber = L.huber_loss(x, t, delta=width, **elements)
    torch.testing.assert_close(L.smooth_l1_loss(x, t, beta=width, **elements), huber / width)
    assert torch.equal(L.smooth_l1_loss(x, t, beta=0.0, **elements), L.l1_loss(x, t, **elements))


@exhaustive
@given(matrices)
def test_divergence_of_distributions(logits):
    """It is 0 from itself and positive from others; logarithms of the target say the same."""
    log_p = torch.from_numpy(logits).double().log_softmax(1)
    log_q = log_p.roll(1, 1).roll(1, 0)
    divergence = partial(L.kl_div, reduction="batchmean", log_target=True)
    assert divergence(log_p, log_p) == 0 <= divergence(log_p, log_q) + 1e-12
    torch.testing.assert_close(L.kl_div(log_p, log_q.exp(), reduction="batchmean"), divergence(log_p, log_q))
    total = L.kl_div(log_p, log_q, reduction="sum", log_target=True)
    torch.testing.assert_close(divergence(log_p, log_q), total / len(log_p))


@exhaustive
@given(hnp.arrays("float64", 20, elements=st.floats(0.125, 100)))
def test_likelihoods_are_highest_at_the_truth(values):
    t = torch.from_numpy(values)
    poisson = gradient(partial(L.poisson_nll_loss, target=t, reduction="sum"), t.log())
    torch.testing.assert_close(poisson, torch.zeros_like(t), rtol=0, atol=1e-12)
    rates = gradient(partial(L.poisson_nll_loss, target=t, log_input=False, reduction="sum"), t)
    torch.testing.assert_close(rates, torch.zeros_like(t), rtol=0, atol=1e-6)
    zero = torch.zeros_like(t)
    of_variance = gradient(lambda var: L.gaussian_nll_loss(t, zero, var, reduction="sum"), t * t)
    torch.testing.assert_close(of_variance, zero, rtol=0, atol=1e-12)


@exhaustive
@given(matrices, st.integers(0, 2**31), st.floats(-1000, 1000, width=16), st.booleans())
def test_triplets_do_not_see_a_shift(anchors, seed, shift, swap):
    anchor = torch.from_numpy(anchors).double()
    _, positive, negative = (anchor + x for x in inputs_of("triplet_margin_loss", *anchor.shape, seed=seed))
    for loss in (L.triplet_margin_loss, L.triplet_margin_with_distance_loss):
        moved = loss(anchor + shift, positive + shift, negative + shift, swap=swap)
        torch.testing.assert_close(moved, loss(anchor, positive, negative, swap=swap), rtol=1e-9, atol=1e-9)


@exhaustive
@given(st.integers(1, 40), st.integers(4, 40), st.integers(0, 2**31), st.floats(0.125, 8))
def test_angles_do_not_see_a_scale(rows, size, seed, factor):
    """But for the 1e-12 that is added to squares."""
    x, y, signs = inputs_of("cosine_embedding_loss", rows, size, seed=seed)
    loss = L.cosine_embedding_loss
    torch.testing.assert_close(loss(x * factor, y / factor, signs), loss(x, y, signs))
    x, positive, negative = inputs_of("triplet_margin_loss", rows, size, seed=seed)
    loss = partial(L.triplet_margin_with_distance_loss, distance_function=L.cosine_distance)
    torch.testing.assert_close(loss(x * factor, positive, negative / factor), loss(x, positive, negative))


@exhaustive
@given(matrices, st.integers(0, 2**31))
def test_margins_of_one_label_are_a_list_of_one(scores, seed):
    """And neither sees a shift of all scores."""
    x = torch.from_numpy(scores).double()
    classes = torch.randint(0, x.shape[1], x.shape[:1], generator=torch.Generator().manual_seed(seed))
    lists = torch.full(x.shape, -1)
    lists[:, 0] = classes
    torch.testing.assert_close(L.multilabel_margin_loss(x, lists), L.multi_margin_loss(x, classes))
    torch.testing.assert_close(L.multi_margin_loss(x + 8, classes), L.multi_margin_loss(x, classes))


@exhaustive
@given(any_shape, st.integers(0, 2**31))
def test_rankings_and_signs(values, seed):
    """Swapped scores want the other sign; the logistic loss of a sign is that of the label it stands for."""
    x = torch.from_numpy(values).double()
    other = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    signs = torch.where(other > 0, 1.0, -1.0).double()
    ranking = partial(L.margin_ranking_loss, margin=0.5, reduction="none")
    assert torch.equal(ranking(x, other, signs), ranking(other, x, -signs))
    labels = (signs + 1) / 2
    logistic = L.binary_cross_entropy_with_logits(x, labels, reduction="none")
    torch.testing.assert_close(L.soft_margin_loss(x, signs, reduction="none"), logistic)

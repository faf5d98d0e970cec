"""Laws that hold for any input, on inputs that hypothesis makes up."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import fused_losses.functional as L

# The same examples on every machine; a failure is a failure, not a matter of luck.
exhaustive = settings(max_examples=150, deadline=None, derandomize=True)
numbers = st.floats(-50, 50, width=32)
matrices = hnp.arrays("float32", hnp.array_shapes(min_dims=2, max_dims=2, max_side=90), elements=numbers)
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
@given(any_shape, st.integers(0, 2**31), st.sampled_from(["mse_loss", "l1_loss"]))
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
@given(any_shape, st.integers(0, 2**31), st.sampled_from(["mean", "sum"]))
def test_reductions_reduce_what_none_returns(values, seed, reduction):
    x = torch.from_numpy(values).double()
    t = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for name in ("mse_loss", "l1_loss", "binary_cross_entropy_with_logits"):
        loss = getattr(L, name)
        elements = loss(x, t, reduction="none")
        expected = elements.mean() if reduction == "mean" else elements.sum()
        torch.testing.assert_close(loss(x, t, reduction=reduction), expected, equal_nan=True)

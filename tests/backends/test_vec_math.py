"""The vector functions, through losses that show them nearly bare: in units of float32's last place."""

from __future__ import annotations

import pytest
import torch

import fused_losses.functional as L
from fused_losses.bench.tolerance import ulp

# The largest error over every instruction set is 2.7, of sigmoids and of exponentials far below 1, where
# the loss's own roundings (the numerator's scale, the sum) add to the function's.
BOUND = 3.0


def error_in_ulp(result: torch.Tensor, exact: torch.Tensor) -> float:
    return float(((result.double() - exact).abs() / ulp(exact, torch.float32)).max())


def spread(low: float, high: float) -> torch.Tensor:
    """A million numbers, evenly over exponents."""
    return torch.logspace(low, high, 1_000_000, base=2.0, dtype=torch.float64).float()


@pytest.mark.parametrize(("low", "high"), [(-140, -100), (-100, -1), (-2, 0)])
def test_log(low, high):
    x = spread(low, high)
    loss = L.binary_cross_entropy(x, torch.ones_like(x), reduction="none")
    assert error_in_ulp(loss, (-x.double().log()).clamp_max(100)) <= BOUND


@pytest.mark.parametrize(("low", "high"), [(-100, -20), (-20, -1), (-2, -0.001)])
def test_log1p(low, high):
    x = spread(low, high)
    loss = L.binary_cross_entropy(x, torch.zeros_like(x), reduction="none")
    assert error_in_ulp(loss, -torch.log1p(-x.double())) <= BOUND


@pytest.mark.parametrize(("low", "high"), [(-30, 0), (0, 6.4)])
def test_softplus(low, high):
    x = spread(low, high)
    loss = L.binary_cross_entropy_with_logits(x, torch.ones_like(x), reduction="none")
    # softplus(-x)
    assert error_in_ulp(loss, torch.nn.functional.softplus(-x.double(), threshold=1000)) <= BOUND


@pytest.mark.parametrize("sign", (1, -1))
@pytest.mark.parametrize(("low", "high"), [(-30, 0), (0, 6.4)])
def test_sigmoid(low, high, sign):
    x = (spread(low, high) * sign).requires_grad_()
    loss = L.binary_cross_entropy_with_logits(x, torch.zeros_like(x), reduction="sum")
    (sigmoid,) = torch.autograd.grad(loss, x)
    assert error_in_ulp(sigmoid, x.detach().double().sigmoid()) <= BOUND


def test_exp():
    """The gradient of a class far below the other is the exponential of the distance."""
    x = -spread(0, 6.4)
    logits = torch.stack([torch.zeros_like(x), x], 1).requires_grad_()
    loss = L.cross_entropy(logits, torch.zeros(len(x), dtype=torch.long), reduction="sum")
    (gradient,) = torch.autograd.grad(loss, logits)
    assert error_in_ulp(gradient[:, 1], x.double().sigmoid()) <= BOUND


@pytest.mark.parametrize(("low", "high"), [(-30, 0), (0, 6.4)])
@pytest.mark.parametrize("sign", (1, -1))
def test_exp_of_any_number(low, high, sign):
    """Up to where it overflows, past 88.72."""
    x = (spread(low, high) * sign).clamp_max(88.72)
    loss = L.poisson_nll_loss(x, torch.zeros_like(x), reduction="none")
    assert error_in_ulp(loss, x.double().exp()) <= BOUND


def test_exp_overflows_and_underflows_where_it_should():
    x = torch.tensor([88.722836, 88.72284, 89.0, 1e4, 3e38, -87.5, -104.0, -1e4, torch.nan])
    loss = L.poisson_nll_loss(x, torch.zeros_like(x), reduction="none")
    torch.testing.assert_close(loss, x.exp(), rtol=1e-6, atol=0, equal_nan=True)


@pytest.mark.parametrize("p", (0.5, 1.5, 3.0))
def test_pow(p):
    """The norm of one number is that number, whose power was taken; the derivative is a power of 1."""
    x = spread(-30, 30)[:, None].requires_grad_()
    nothing = torch.zeros_like(x)
    loss = L.triplet_margin_loss(nothing, x, nothing, p=p, eps=0.0, margin=1e-30, reduction="none")
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    assert error_in_ulp(loss.detach(), x.detach().double()[:, 0]) <= BOUND
    assert error_in_ulp(gradient, torch.ones_like(x, dtype=torch.float64)) <= BOUND

"""Focal and asymmetric losses: what formulas of probabilities lose, and what torch does not have to say."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from kit.device import there
from torch import Tensor

import fused_losses
import fused_losses.functional as L
from fused_losses.losses.twins import twin_of

pytestmark = pytest.mark.gpu

NAMES = ("sigmoid_focal_loss", "asymmetric_loss")
each_name = pytest.mark.parametrize("name", NAMES)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

# Powers below 1, at 1 and above, whole and broken.
POWERS = (0, 0.1, 0.5, 1, 1.5, 2, 3.7)


def options_of(name: str, gamma: float) -> dict[str, float]:
    return {"gamma": gamma} if name == "sigmoid_focal_loss" else {"gamma_neg": gamma, "gamma_pos": gamma}


def operands(dtype: torch.dtype = torch.float64, *shape: int) -> tuple[Tensor, Tensor]:
    """Logits, and targets of which a third is between 0 and 1."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape or (7, 6), generator=generator, dtype=torch.float64) * 4
    t = torch.rand(shape or (7, 6), generator=generator, dtype=torch.float64)
    hard = torch.rand(shape or (7, 6), generator=generator) < 2 / 3
    return x.to(dtype), torch.where(hard, t.round(), t).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gamma", POWERS)
@each_name
def test_sure_and_infinite_logits(name, gamma, dtype):
    """Where a probability rounds to 0 or 1, and where it is that."""
    sure = torch.tensor([30.0, 60.0, 90.0, 104.0, 200.0, 1e4, torch.inf], dtype=dtype)
    x = torch.cat([sure, -sure]).requires_grad_()
    right = torch.cat([torch.ones(7), torch.zeros(7)]).to(dtype)
    for target in (right, 1 - right):
        loss = there(getattr(L, name))(x, target, **options_of(name, gamma), reduction="none")
        (slope,) = torch.autograd.grad(loss, x, torch.ones_like(loss))
        assert slope.isfinite().all()
        if target is right:
            # No more than the cross-entropy itself, times the largest factor there is.
            most = torch.exp(-sure.double()).repeat(2) * 2 * (1 + gamma)
            least = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
            assert (loss.double().abs() <= most + least).all()
            assert (slope.double().abs() <= most + least).all()
        elif name == "sigmoid_focal_loss":
            share = torch.where(target == 1, 0.25, 0.75).double()
            size = x.detach().double().abs()
            relative = max(2 * torch.finfo(dtype).eps, 1e-11)  # e^-30 is there, too
            torch.testing.assert_close(loss.double(), share * size, rtol=relative, atol=0)
            torch.testing.assert_close(slope.double(), x.detach().sign() * share, rtol=relative, atol=0)


@each_name
@pytest.mark.parametrize("gamma", POWERS)
@pytest.mark.cpu
def test_all_derivatives(name, gamma):
    """With respect to logits by the kernels, twice by torch's operators; with respect to targets by these."""
    x, t = operands()
    # Not where the asymmetric loss has a kink, and inside (0, 1), where the target's derivative is two-sided.
    x = torch.where(((x.sigmoid() - 0.05).abs() < 1e-3) | (x < -12), 1.0, x)
    options = options_of(name, gamma)
    function = there(getattr(L, name))

    def loss(x, t):
        return function(x, t, **options, reduction="none")

    leaf = x.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, t), (leaf,))
    assert torch.autograd.gradgradcheck(lambda x: loss(x, t), (leaf,))
    soft = t.clamp(0.1, 0.9).requires_grad_()
    assert torch.autograd.gradcheck(loss, (leaf, soft))
    assert torch.autograd.gradgradcheck(loss, (leaf, soft))


@pytest.mark.parametrize("gamma", POWERS)
@each_name
@pytest.mark.cpu
def test_second_derivatives_are_finite_where_the_power_vanishes(name, gamma):
    x = torch.tensor([-torch.inf, -1e4, -200.0, -60.0, 60.0, 200.0, 1e4, torch.inf], requires_grad=True)
    target = (x > 0).float().detach()
    loss = there(getattr(L, name))(x, target, **options_of(name, gamma), reduction="sum")
    (slope,) = torch.autograd.grad(loss, x, create_graph=True)
    (second,) = torch.autograd.grad(slope.sum(), x)
    assert slope.isfinite().all() and second[1:-1].isfinite().all()


@pytest.mark.parametrize("target", (0.0, 1.0))
@pytest.mark.parametrize("gamma", (0.5, 1, 2))
@pytest.mark.cpu
def test_derivative_with_respect_to_a_hard_target(gamma, target):
    """From inside the interval, by torch's formula."""
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)
    t = torch.full_like(x, target).requires_grad_()
    there(L.sigmoid_focal_loss)(x, t, gamma=gamma, reduction="sum").backward()
    p, leaf = x.sigmoid(), t.detach().clone().requires_grad_()
    losses = F.binary_cross_entropy_with_logits(x, leaf, reduction="none")
    losses = losses * (leaf * (1 - p) + (1 - leaf) * p) ** gamma
    ((0.25 * leaf + 0.75 * (1 - leaf)) * losses).sum().backward()
    torch.testing.assert_close(t.grad, leaf.grad)


@each_name
def test_without_powers_it_is_binary_cross_entropy(name):
    x, t = operands(torch.float32)
    more = {"alpha": -1} if name == "sigmoid_focal_loss" else {"clip": None}
    mine = there(getattr(L, name))(x, t, **options_of(name, 0), **more, reduction="mean")
    torch.testing.assert_close(mine, F.binary_cross_entropy_with_logits(x, t))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backward", ("fused", "recompute", "inplace"))
@each_name
def test_ignored_elements_and_normalizer(name, backward, dtype):
    x, t = operands(dtype, 70, 33)
    kept = torch.rand(70, 33, generator=torch.Generator().manual_seed(1)) > 0.3
    hidden = torch.where(kept, t, -1.0)
    weight = torch.rand(33).to(dtype)
    for divisor in (None, 40.0, torch.tensor(40.0)):
        leaf = torch.where(kept, x, torch.nan).detach().requires_grad_()
        mine = there(getattr(L, name))(
            leaf * 1,
            hidden,
            weight=weight,
            ignore_index=-1,
            reduction="mean",
            normalizer=divisor,
            backward=backward,
        )
        mine.backward()
        wide = x.double().clone().requires_grad_()
        losses = twin_of(name)(wide, t.double(), weight=weight.double(), reduction="none")[kept]
        exact = losses.sum() / (kept.sum() if divisor is None else 40)
        exact.backward()
        tolerance = {torch.float64: 1e-12, torch.float32: 2e-6}.get(dtype, 2**-7)
        torch.testing.assert_close(mine.double(), exact, rtol=tolerance, atol=0)
        assert torch.equal(leaf.grad[~kept], torch.zeros_like(leaf.grad[~kept]))
        largest = float(wide.grad.abs().max())
        expected = wide.grad[kept]
        torch.testing.assert_close(
            leaf.grad[kept].double(), expected, rtol=tolerance, atol=tolerance * largest
        )


@each_name
def test_modules_move_their_weight(name):
    """It is a buffer, converted and moved with the module."""
    x, t = operands()
    kind = fused_losses.SigmoidFocalLoss if name == "sigmoid_focal_loss" else fused_losses.AsymmetricLoss
    module = kind(weight=torch.rand(6), reduction="mean").double()
    assert module.weight.dtype is torch.float64 and "weight" in module.state_dict()
    expected = getattr(L, name)(x, t, weight=module.weight, reduction="mean", normalizer=3)
    torch.testing.assert_close(there(module)(x, t, normalizer=3), expected)


@each_name
@pytest.mark.cpu
def test_integer_targets_and_transforms(name):
    x, t = operands()
    labels = t.round().long()
    function = there(getattr(L, name))
    torch.testing.assert_close(
        function(x, labels, reduction="sum"), function(x, labels.double(), reduction="sum")
    )
    leaf = x.clone().requires_grad_()
    function(leaf, t, reduction="sum").backward()
    transformed = torch.func.grad(lambda x: function(x, t, reduction="sum"))(x)
    torch.testing.assert_close(transformed, leaf.grad)


@pytest.mark.slow
@each_name
@pytest.mark.cpu
def test_compiles_whole(name):
    x, t = operands(torch.float32)

    def step(x, t, normalizer):
        return getattr(L, name)(x, t, ignore_index=-1, reduction="mean", normalizer=normalizer)

    results = []
    for function in (step, torch.compile(step, fullgraph=True)):
        leaf = x.clone().requires_grad_()
        loss = function(leaf, t, torch.tensor(5.0))
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("name", ["linear-" + name for name in NAMES])
def test_over_a_linear_head(name):
    """Chunk by chunk, with a target by position and what is ignored."""
    name = name.removeprefix("linear-")
    generator = torch.Generator().manual_seed(0)
    hidden, head = (torch.randn(n, 5, generator=generator, requires_grad=True) for n in (9, 40))
    target = torch.rand(9, 40, generator=generator).round()
    target[3] = -1
    options = {"ignore_index": -1, "reduction": "mean", "normalizer": 7}
    said = fused_losses.explain(L.linear_loss, hidden, head, target, name, **options)
    assert "chunks of" in said
    mine = L.linear_loss(hidden, head, target, name, **options, workspace=1000)
    expected = getattr(L, name)(F.linear(hidden, head), target, **options)
    torch.testing.assert_close(mine, expected)
    gradients = [torch.autograd.grad(loss, (hidden, head)) for loss in (mine, expected)]
    torch.testing.assert_close(*gradients)

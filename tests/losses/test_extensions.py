"""What the binary losses have beyond torch; and what is ignored, whatever multiplies a gradient."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from kit.device import there

import fused_losses
import fused_losses.functional as L

pytestmark = pytest.mark.gpu
NAMES = ("binary_cross_entropy", "binary_cross_entropy_with_logits")


def operands(name: str, dtype: torch.dtype, ignored: float):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(70, 33, generator=generator, dtype=torch.float64)
    t = torch.rand(70, 33, generator=generator, dtype=torch.float64)
    kept = torch.rand(70, 33, generator=generator) > 0.3
    x = x.sigmoid() if name == "binary_cross_entropy" else x
    return x.to(dtype), torch.where(kept, t, ignored).to(dtype), kept


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
@pytest.mark.parametrize("backward", ("fused", "recompute", "inplace"))
@pytest.mark.parametrize("name", NAMES)
def test_ignored_elements_count_nowhere(name, backward, reduction, dtype):
    for options in ({}, {"weight": torch.rand(33).to(dtype)}):
        x, t, kept = operands(name, dtype, -1.0)
        mine = x.clone().requires_grad_()
        loss = there(getattr(L, name))(
            mine * 1, t, ignore_index=-1, reduction=reduction, backward=backward, **options
        )
        loss.sum().backward()

        exact = x.double().requires_grad_()
        wide = {key: value.double().expand(70, 33)[kept] for key, value in options.items()}
        theirs = getattr(F, name)(exact[kept], t.double()[kept], reduction=reduction, **wide)
        theirs.sum().backward()
        tolerance = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2**-7}[dtype]
        torch.testing.assert_close(
            loss[kept].double() if reduction == "none" else loss.double(), theirs, rtol=tolerance, atol=0
        )
        if reduction == "none":
            assert torch.equal(loss[~kept], torch.zeros_like(loss[~kept]))
        # sigmoid(x) - t is as good as its terms, which the largest gradient stands for.
        largest = float(exact.grad.abs().max())
        torch.testing.assert_close(mine.grad.double(), exact.grad, rtol=tolerance, atol=tolerance * largest)
        assert torch.equal(mine.grad[~kept], torch.zeros_like(mine.grad[~kept]))


@pytest.mark.parametrize("name", NAMES)
def test_ignored_elements_may_hold_anything(name):
    x, t, kept = operands(name, torch.float32, -1.0)
    x = torch.where(kept, x, torch.nan).requires_grad_()
    loss = there(getattr(L, name))(x, t, ignore_index=-1)
    loss.backward()
    assert loss.isfinite() and torch.equal(x.grad[~kept], torch.zeros_like(x.grad[~kept]))


@pytest.mark.parametrize("name", NAMES)
def test_everything_ignored(name):
    """As for classes: a mean of nothing is NaN, and its gradient is 0."""
    x = torch.rand(5, 3, requires_grad=True)
    loss = there(getattr(L, name))(x, torch.full((5, 3), 0.5), ignore_index=0.5)
    loss.backward()
    assert loss.isnan() and torch.equal(x.grad, torch.zeros(5, 3))
    assert there(getattr(L, name))(x, torch.full((5, 3), 0.5), ignore_index=0.5, reduction="sum") == 0


@pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.cpu
def test_differentiable_twice_and_under_transforms(name, reduction):
    x, t, _ = operands(name, torch.float64, -1.0)
    x, t = x[:4, :3], t[:4, :3].contiguous()

    def loss(x):
        return there(getattr(L, name))(x, t, ignore_index=-1, reduction=reduction).square().sum()

    assert torch.autograd.gradgradcheck(loss, (x.clone().requires_grad_(),))
    mine = x.clone().requires_grad_()
    loss(mine).backward()
    torch.testing.assert_close(torch.func.grad(loss)(x), mine.grad)


def test_in_modules():
    x, t, kept = operands("binary_cross_entropy_with_logits", torch.float64, -1.0)
    module = fused_losses.BCEWithLogitsLoss(ignore_index=-1)
    expected = F.binary_cross_entropy_with_logits(x[kept], t[kept])
    torch.testing.assert_close(there(module)(x, t), expected)


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("smoothing", (0.0, 0.1, 1.0))
@pytest.mark.parametrize("backward", ("fused", "recompute", "inplace"))
@pytest.mark.parametrize("name", NAMES)
def test_smoothed_labels_over_a_normalizer(name, backward, smoothing, dtype):
    """Of targets between 0 and 1, and of labels; the smoothed target is exact enough for torch's function."""
    for options in ({}, {"weight": torch.rand(33)}, {"pos_weight": torch.rand(33) * 3}):
        if "pos_weight" in options and name == "binary_cross_entropy":
            continue
        options = {key: value.to(dtype) for key, value in options.items()}
        for divisor in (None, 17, torch.tensor(17.0)):
            x, t, kept = operands(name, dtype, -1.0)
            t[::2] = t[::2].round()
            mine, target = x.clone().requires_grad_(), t.clone().requires_grad_()
            loss = there(getattr(L, name))(
                mine * 1,
                target,
                ignore_index=-1,
                label_smoothing=smoothing,
                normalizer=divisor,
                backward=backward,
                **options,
            )
            loss.backward()

            exact, wide = x.double().requires_grad_(), t.double().requires_grad_()
            given = {key: value.double().expand(70, 33)[kept] for key, value in options.items()}
            smoothed = wide[kept] * (1 - smoothing) + smoothing / 2
            theirs = getattr(F, name)(exact[kept], smoothed, reduction="sum", **given)
            theirs = theirs / (kept.sum() if divisor is None else 17)
            theirs.backward()
            tolerance = {torch.float64: 1e-12, torch.float32: 2e-6}.get(dtype, 2**-7)
            torch.testing.assert_close(loss.double(), theirs, rtol=tolerance, atol=0)
            for a, b in ((mine.grad, exact.grad), (target.grad, wide.grad)):
                largest = float(b.abs().max())
                torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance * largest)
                assert torch.equal(a[~kept], torch.zeros_like(a[~kept]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.cpu
def test_smoothing_and_normalizer_are_checked_and_composed(name):
    x, t, _ = operands(name, torch.float64, -1.0)
    x, t = x[:4, :3], t[:4, :3].contiguous()
    function = there(getattr(L, name))
    for bad in (-0.1, 1.1, torch.nan):
        with pytest.raises(ValueError, match="label_smoothing must be between 0 and 1"):
            function(x, t, label_smoothing=bad)
    for options in ({"label_smoothing": "0.1"}, {"ignore_index": "x"}):
        with pytest.raises(TypeError, match="must be a number"):
            function(x, t, **options)
    for reduction in ("sum", "none"):
        with pytest.raises(ValueError, match="normalizer is what the mean divides by"):
            function(x, t, normalizer=3, reduction=reduction)
    options = {"ignore_index": -1, "label_smoothing": 0.2, "normalizer": 5}

    def loss(x):
        return function(x, t, **options)

    assert torch.autograd.gradgradcheck(loss, (x.clone().requires_grad_(),))
    mine = x.clone().requires_grad_()
    loss(mine).backward()
    torch.testing.assert_close(torch.func.grad(loss)(x), mine.grad)
    module = {"binary_cross_entropy": fused_losses.BCELoss}.get(name, fused_losses.BCEWithLogitsLoss)
    smoothed = module(ignore_index=-1, label_smoothing=0.2)
    torch.testing.assert_close(there(smoothed)(x, t, normalizer=5), loss(x))


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("backward", ("fused", "recompute", "inplace"))
@pytest.mark.parametrize("name", ("cross_entropy", "binary_cross_entropy_with_logits"))
def test_the_ignored_has_no_gradient_whatever_the_loss_is_multiplied_by(name, backward, dtype):
    """A sum that is divided by no items: what counts has infinite gradients, what does not has none."""
    logits = torch.linspace(-2, 2, 30).view(6, 5).to(dtype)
    if name == "cross_entropy":
        some = torch.tensor([-1, 0, -1, 4, -1, 2])
        counts = (some >= 0).unsqueeze(1).expand(6, 5)
    else:
        some = torch.linspace(0, 1, 30).view(6, 5).to(dtype)
        counts = torch.arange(30).view(6, 5) % 3 == 0
        some = some.where(counts, -1)
    for target in (some, torch.full_like(some, -1)):
        for reduction in ("sum", "mean"):
            leaf = logits.clone().requires_grad_()
            call = there(
                functools.partial(getattr(L, name), ignore_index=-1, reduction=reduction, backward=backward)
            )
            (gradient,) = torch.autograd.grad(call(leaf * 1, target) / 0, leaf)
            assert torch.equal(gradient.isfinite(), gradient == 0)
            assert torch.equal(gradient != 0, counts if target is some else torch.zeros_like(counts))

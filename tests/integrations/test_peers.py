"""Losses that other packages define: their values and gradients, where these are installed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fused_losses.functional as L

RELATIVE = {torch.float64: 1e-9, torch.float32: 2e-5}
"""Theirs are made of probabilities, which round to 1 where logits are large."""

each_dtype = pytest.mark.parametrize("dtype", RELATIVE, ids=str)


def operands(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Logits up to where float32 still knows 1 - p; labels; and targets that are none."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 80, generator=generator, dtype=torch.float64).mul_(2).clamp_(-8, 8)
    t = torch.rand(64, 80, generator=generator, dtype=torch.float64)
    return x.to(dtype), t.round().to(dtype), t.to(dtype)


def results(function, *leaves: Tensor) -> tuple[Tensor, ...]:
    """The loss, and the gradients of all operands that are floating."""
    leaves = tuple(x.clone().requires_grad_() for x in leaves)
    loss = function(*leaves)
    return loss.detach(), *torch.autograd.grad(loss, leaves, torch.ones_like(loss))


def assert_same(mine, theirs, *leaves: Tensor) -> None:
    """Whatever is small beside the largest number of its tensor may be off by a part of that."""
    relative = RELATIVE[leaves[0].dtype]
    for a, b in zip(results(mine, *leaves), results(theirs, *leaves), strict=True):
        largest = float(b.abs().max())
        torch.testing.assert_close(a, b, rtol=relative, atol=relative * largest)
        print(f"{leaves[0].dtype}: largest difference {float((a - b).abs().max()) / largest:.1e}")


@each_dtype
@pytest.mark.parametrize("alpha", (0.25, 0.8, -1))
@pytest.mark.parametrize("gamma", (0, 1, 1.5, 2, 4.2))
def test_focal_loss_of_torchvision(gamma, alpha, dtype):
    theirs = pytest.importorskip("torchvision").ops.sigmoid_focal_loss
    x, *targets = operands(dtype)
    for target in targets:
        for reduction in ("none", "mean", "sum"):
            options = {"alpha": alpha, "gamma": gamma, "reduction": reduction}
            assert_same(
                lambda x: L.sigmoid_focal_loss(x, target, **options),  # noqa: B023
                lambda x: theirs(x, target, **options),  # noqa: B023
                x,
            )
    soft = targets[1]
    assert_same(
        lambda x, t: L.sigmoid_focal_loss(x, t, alpha, gamma, "sum"),
        lambda x, t: theirs(x, t, alpha, gamma, "sum"),
        x,
        soft,
    )


@pytest.mark.parametrize("clip", (0.05, 0.2, None))
@pytest.mark.parametrize(("gamma_neg", "gamma_pos"), ((4, 1), (2.5, 0), (1, 1.5), (0, 0)))
def test_asymmetric_loss_of_timm(gamma_neg, gamma_pos, clip):
    """Which computes in float32 whatever it is given."""
    kind = pytest.importorskip("timm.loss").AsymmetricLossMultiLabel
    x, *targets = operands(torch.float32)
    for target in targets:
        options = {"gamma_neg": gamma_neg, "gamma_pos": gamma_pos, "clip": clip}
        module = kind(**options)
        rows = len(x)
        assert_same(
            lambda x: L.asymmetric_loss(x, target, **options) / rows,  # noqa: B023
            lambda x: module(x, target),  # noqa: B023
            x,
        )


def features(dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Images and texts, a logit scale and a bias."""
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(50, 16, generator=generator, dtype=torch.float64) for _ in range(2))
    numbers = (torch.tensor(x, dtype=torch.float64) for x in (7.0, -4.0))
    return tuple(x.to(dtype) for x in (F.normalize(image), F.normalize(image + text), *numbers))


@each_dtype
@pytest.mark.parametrize("name", ("ClipLoss", "SigLipLoss"))
def test_losses_of_pairs_of_open_clip(name, dtype):
    theirs = getattr(pytest.importorskip("open_clip.loss"), name)()
    image, text, scale, bias = features(dtype)
    if name == "SigLipLoss":
        assert_same(L.siglip_loss, theirs, image, text, scale, bias)
    else:  # the bias has no gradient but what roundings leave
        mine = lambda i, t, a: L.clip_loss(i, t, a, logit_bias=bias)  # noqa: E731
        assert_same(mine, lambda i, t, a: theirs(i, t, a, bias), image, text, scale)

"""Losses of pairs: those of torch's operators over all logits, without these."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from kit.device import there
from torch import Tensor

import fused_losses
import fused_losses.functional as L

pytestmark = pytest.mark.gpu

N, D = 60, 12
SMALL = 7 * N * 8
"""A workspace of a few rows."""


def operands(dtype: torch.dtype = torch.float64, rows: int = N) -> list[Tensor]:
    """Features of images and texts, some of which look alike; scale and bias as after some training."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(rows, D, generator=generator, dtype=torch.float64)
    text = image + torch.randn(rows, D, generator=generator, dtype=torch.float64)
    numbers = (torch.tensor(x, dtype=torch.float64) for x in (5.0, -3.0))
    leaves = (F.normalize(image), F.normalize(text), *numbers)
    return [x.to(dtype).requires_grad_() for x in leaves]


def clip(image, text, scale, bias):
    """Of all logits, in torch's operators."""
    logits = scale * image @ text.T + bias
    labels = torch.arange(len(image), device=image.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def siglip(image, text, scale, bias):
    """Of all logits, in torch's operators."""
    logits = scale * image @ text.T + bias
    signs = 2 * torch.eye(len(image), device=image.device, dtype=image.dtype) - 1
    return -F.logsigmoid(signs * logits).sum() / len(image)


COMPOSED = {"clip_loss": clip, "siglip_loss": siglip}
each_loss = pytest.mark.parametrize("name", COMPOSED)


def mine(name, image, text, scale, bias, **options):
    return there(getattr(L, name))(image, text, scale, logit_bias=bias, **options)


@pytest.mark.parametrize("backward", ("fused", "recompute"))
@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16), ids=str)
@each_loss
def test_values_and_all_gradients(name, dtype, backward):
    leaves = operands(dtype)
    exact = [x.detach().double().requires_grad_() for x in leaves]
    expected = COMPOSED[name](*exact)
    for options in ({}, {"workspace": SMALL}):
        loss = mine(name, *leaves, backward=backward, **options)
        # In bfloat16, features times the scale are rounded before they are multiplied.
        relative = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 2**-5)
        torch.testing.assert_close(loss.double(), expected, rtol=relative, atol=0)
        for upstream in (1.0, 0.37):
            gradients = torch.autograd.grad(loss, leaves, torch.tensor(upstream).to(dtype), retain_graph=True)
            theirs = torch.autograd.grad(expected, exact, torch.tensor(upstream).double(), retain_graph=True)
            for a, b in zip(gradients, theirs, strict=True):
                largest = max(float(b.abs().max()), 1e-3)
                torch.testing.assert_close(a.double(), b, rtol=relative, atol=relative * largest)


@each_loss
@pytest.mark.cpu
def test_second_derivatives(name):
    leaves = operands(rows=4)
    assert torch.autograd.gradcheck(lambda *x: mine(name, *x), leaves)
    assert torch.autograd.gradgradcheck(lambda *x: mine(name, *x), leaves)


@each_loss
def test_there_is_no_matrix_of_all_logits(name):
    image, text, scale, bias = operands()
    function = getattr(L, name)
    said = fused_losses.explain(function, image, text, scale, logit_bias=bias, workspace=SMALL)
    assert "chunks of 7 rows" in said and "all logits" not in said


@each_loss
def test_scale_and_bias_may_be_numbers_or_absent(name):
    image, text, _, _ = operands()
    expected = COMPOSED[name](image, text, 5.0, -3.0)
    torch.testing.assert_close(mine(name, image, text, 5.0, -3.0), expected)
    torch.testing.assert_close(mine(name, image, text, torch.tensor([5.0]), torch.tensor([-3.0])), expected)
    torch.testing.assert_close(mine(name, image, text, 5.0, None), COMPOSED[name](image, text, 5.0, 0.0))


@each_loss
def test_what_are_no_pairs(name):
    image, text, scale, bias = operands()
    for bad in ((image, text[:-1]), (image, text[:, :-1]), (image[0], text[0])):
        with pytest.raises(ValueError, match=r"must both have shape \(N, D\)"):
            mine(name, *bad, scale, bias)
    with pytest.raises(ValueError, match="backward"):
        mine(name, image, text, scale, bias, backward="inplace")


@pytest.mark.slow
@each_loss
@pytest.mark.cpu
def test_compiles_whole(name):
    results = []
    for function in (getattr(L, name), torch.compile(getattr(L, name), fullgraph=True)):
        leaves = operands(torch.float32)
        loss = function(*leaves[:3], logit_bias=leaves[3])
        results.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
    torch.testing.assert_close(*results)

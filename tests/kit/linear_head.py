"""A linear head and its targets; losses over it, in chunks by ours and composed of torch's functions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import fused_losses.functional as L
from kit.tolerance import assert_as_accurate, eager_of

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

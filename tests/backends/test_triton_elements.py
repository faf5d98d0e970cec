"""How Triton's kernels of pointwise losses walk over elements: turns, packs, division by multiplication."""

from __future__ import annotations

import os

import pytest
import torch
import torch.nn.functional as F

import fused_losses.functional as L

pytest.importorskip("triton")

from fused_losses.triton_kernels import launch, tiling
from fused_losses.triton_kernels.elements import element_walk, reciprocal

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and os.environ.get("FUSED_LOSSES_BACKEND") == "triton"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in Triton's interpreter: make test-triton")


@pytest.mark.parametrize("size", (2, 3, 7, 8, 10, 100, 1000, 1024, 1025, 65537, 2**29 - 1, 2**30 - 1, 2**30))
def test_a_quotient_is_exact(size):
    multiplier, shift = reciprocal(size)
    assert -(2**31) <= multiplier < 0
    assert multiplier % 2 == 1
    multiples = torch.randint(0, 2**30 // size + 1, (1000,)).tolist()
    near = {k * size + d for k in (*multiples, 0, 1, 2**30 // size) for d in (-1, 0, 1)}
    for n in (n for n in near | {2**30 - 1} if 0 <= n < 2**30):
        assert (n * (multiplier + 2**32) >> 32) >> shift == n // size, n


def test_as_many_programs_on_every_device():
    turn = 2048
    for count in (0, 1, turn, turn + 1, 10**6, 10**7, 2**31, 896 * turn, 896 * turn + 1):
        programs = tiling.pointwise_programs(count, turn)
        assert 1 <= programs <= tiling.MOST_PROGRAMS
        turns = -(-count // turn)
        # As even as can be: no program has two turns more than another.
        assert -(-turns // programs) == max(1, -(-turns // tiling.MOST_PROGRAMS)) or turns == 0


def test_packs_lie_on_lines():
    """Eight neighbours where lines are made of them, else fewer; one where elements are found by number."""
    x = torch.empty(6, 40)
    for other, pack in (
        (torch.empty(40), 8),
        (torch.empty(6, 1), 8),
        (torch.empty(6, 42)[:, 2:], 8),
        (torch.empty(()), 1),
        (torch.empty(6, 40), 1),
    ):
        assert element_walk(x.shape, x, (x, other)).pack == pack
    assert element_walk(torch.Size((6, 10)), torch.empty(6, 10), (torch.empty(10),)).pack == 2
    assert element_walk(torch.Size((6, 9)), torch.empty(6, 9), (torch.empty(9),)).pack == 1


def laid_out(label):
    """An input, a target and a weight, float32."""
    generator = torch.Generator().manual_seed(0)

    def rand(*shape):
        return torch.rand(shape, generator=generator)

    return {
        "flat": lambda: (rand(9001), rand(9001), rand(9001)),
        "one weight": lambda: (rand(9, 1001), rand(9, 1001), rand(1, 1)),
        "weights of classes": lambda: (rand(9, 1000), rand(9, 1000), rand(1000)),
        "weights of rows": lambda: (rand(9, 1001), rand(9, 1001), rand(9, 1)),
        "odd weights": lambda: (rand(101, 33), rand(101, 33), rand(33)),
        "a slice": lambda: (rand(9, 1025)[:, 1:], rand(9, 1024), rand(1024)),
        "every second": lambda: (rand(9, 2000)[:, ::2], rand(9, 1000), rand(9, 2000)[:, ::2]),
        "channels": lambda: (rand(3, 5, 20, 24), rand(3, 5, 20, 24), rand(5, 1, 1)),
        "channels last": lambda: (
            rand(3, 20, 24, 8).permute(0, 3, 1, 2),
            rand(3, 8, 20, 24),
            rand(3, 1, 20, 24),
        ),
        "a single row": lambda: (rand(9, 1000), rand(1000), rand(9, 1000)),
    }[label]()


@interpreted
@pytest.mark.parametrize(
    "label",
    (
        "flat",
        "one weight",
        "weights of classes",
        "weights of rows",
        "odd weights",
        "a slice",
        "every second",
        "channels",
        "channels last",
        "a single row",
    ),
)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_every_element_has_one_turn(monkeypatch, label):
    """Two programs share all turns, the last of which is not whole."""
    monkeypatch.setattr(tiling, "MOST_PROGRAMS", 2)
    made = []
    run = launch.launch
    monkeypatch.setattr(
        "fused_losses.triton_kernels.pointwise.launch",
        lambda kernel, programs, *rest, **constants: (
            made.append(programs),
            run(kernel, programs, *rest, **constants),
        ),
    )
    x, t, weight = laid_out(label)
    for reduction in ("sum", "none"):
        ours, theirs = x.detach().requires_grad_(), x.double().requires_grad_()
        loss = L.binary_cross_entropy_with_logits(ours, t.expand_as(x), weight, reduction=reduction)
        expected = F.binary_cross_entropy_with_logits(
            theirs, t.double().expand_as(x), weight.double(), reduction=reduction
        )
        torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-7)
        upstream = torch.rand(loss.shape)
        (gradient,) = torch.autograd.grad(loss, ours, upstream)
        (reference,) = torch.autograd.grad(expected, theirs, upstream.double())
        torch.testing.assert_close(gradient.double(), reference, rtol=1e-6, atol=1e-7)
    assert max(made) == 2

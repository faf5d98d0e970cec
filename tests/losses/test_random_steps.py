"""A short run of `make test-stress`, and what it rests on."""

from __future__ import annotations

import mmap

import pytest
import torch
from kit.random_steps import OPTIONS, draw, judged
from kit.resident import Growth

import fused_losses.functional as L
from fused_losses.registry import LOSSES

pytestmark = pytest.mark.gpu

STEPS, PARTS = 400, 8
EIGHT_MEBIBYTES = 2**23


@pytest.mark.parametrize("part", range(PARTS))
def test_random_steps(part):
    problems = list(filter(None, judged(part * STEPS // PARTS, STEPS // PARTS)))
    assert not problems, "\n".join(problems)


def test_a_wrong_result_is_found(monkeypatch):
    """A loss that is off by some units in the last place fails, whatever its options."""
    monkeypatch.setattr(L, "mse_loss", lambda *args, backward, **options: _slightly_off(*args, **options))
    seeds = [seed for seed in range(200) if draw(seed).name == "mse_loss"]
    assert len(seeds) > 3
    for seed in seeds:
        (problem,) = judged(seed, 1)
        assert "AssertionError" in problem and f"seed {seed}:" in problem


def _slightly_off(*operands, **options):
    loss = torch.nn.functional.mse_loss(*operands, **options)
    return loss * (1 + 40 * torch.finfo(loss.dtype).eps)


def test_steps_are_of_every_loss_and_option():
    steps = [draw(seed) for seed in range(1000)]
    assert {step.name for step in steps} == set(LOSSES)
    for name, options in OPTIONS.items():
        drawn = {key for step in steps if step.name == name for key in step.cases[0].options}
        assert set(options) <= drawn
    assert str(draw(7)) == str(draw(7))


def test_growth_is_seen():
    growth, kept = Growth(), []
    for _ in range(10):
        kept.append(mmap.mmap(-1, EIGHT_MEBIBYTES))  # nothing that malloc has kept of earlier tests
        kept[-1].write(bytes(EIGHT_MEBIBYTES))
        growth.look()
    assert growth.is_a_leak and 32 < growth.mebibytes < 64, growth

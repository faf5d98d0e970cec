"""Heads of 16 bits on CPUs with and without instructions for such products: what depends on these."""

from __future__ import annotations

import pytest
import torch
from kit.linear_head import LABELS, SMALL, N, V, as_dtype, composed, head, results, with_torchs_own
from kit.tolerance import assert_as_accurate

import fused_losses.functional as L

TARGETS = {
    "cross_entropy": LABELS,
    "binary_cross_entropy_with_logits": torch.rand(N, V, generator=torch.Generator().manual_seed(7)),
    "mse_loss": torch.rand(N, V, generator=torch.Generator().manual_seed(8)),
    "soft_margin_loss": torch.rand(N, V, generator=torch.Generator().manual_seed(9)).round() * 2 - 1,
}
each_dtype = pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)


def by_both_kinds(monkeypatch, function, operands, **keywords):
    """What a CPU with products of 16 bits gives, and one without."""
    for natively in (True, False):
        monkeypatch.setattr(
            "fused_losses.linear.products._cpu_multiplies", lambda dtype, found=natively: found
        )
        yield results(function, operands, torch.ones_like, **keywords)


@each_dtype
@pytest.mark.parametrize("autocast", (False, True), ids=("as-they-are", "autocast"))
@pytest.mark.parametrize("name", TARGETS)
def test_kinds_of_cpus_differ_by_no_more_than_torch_from_the_truth(name, autocast, dtype, monkeypatch):
    def loss(x, weight, bias, target):
        return L.linear_loss(x, weight, target, name, linear_bias=bias, workspace=SMALL)

    operands = head(torch.float32 if autocast else dtype)
    call = {"target": TARGETS[name]} if autocast else as_dtype({"target": TARGETS[name]}, dtype)
    with torch.autocast("cpu", dtype, enabled=autocast):
        native, other = by_both_kinds(monkeypatch, loss, operands, **call)
        eager = results(composed(name), operands, torch.ones_like, **call)
    for part, one, two, theirs in zip(("loss", "input", "weight", "bias"), native, other, eager, strict=True):
        reference = two.double()
        largest = float(reference.abs().max())
        assert one.dtype is two.dtype
        limits = {"dtype": dtype, "name": f"{name} {part}", "terms": largest}
        assert_as_accurate(one.to(dtype), theirs.to(dtype), reference, **limits)


@with_torchs_own
@each_dtype
def test_options_leave_nothing_to_the_cpu(dtype, monkeypatch):
    def loss(x, weight, bias):
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=64)
        return L.linear_cross_entropy(x, weight, LABELS, linear_bias=bias, options=options)

    native, other = by_both_kinds(monkeypatch, loss, head(dtype))
    assert all(torch.equal(one, two) for one, two in zip(native, other, strict=True))

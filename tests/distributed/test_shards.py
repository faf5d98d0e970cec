"""What vocab-parallel losses ask of the kernels: parts of classes, one after the other in one process.

tests/distributed/test_distributed.py has several processes, whose kernels are the CPU's.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from kit.device import there
from kit.softmax_terms import operands
from kit.tolerance import roundings

import fused_losses.functional as L
from fused_losses.distributed import Shard
from fused_losses.distributed.rows import local_numbers, merge, numbers_of, write_gradient
from fused_losses.distributed.target import Options, Target

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("by_kernels_only")]

SIZES = (70, 0, 3, 58)
CLASSES = sum(SIZES)
TERMS = ({}, {"entropy": 0.3}, {"entropy": -0.2, "logit_scale": 0.5, "softcap": 4.0, "z_loss": 0.01})


def in_parts(logits, target, weight, of_lse, label_smoothing=0.0, ignore_index=-100, **terms):
    """Losses, log-sum-exps, the largest classes, whether these are right; the gradient of losses and lse."""
    settings = {"z_loss": 0.0, "entropy": 0.0, "logit_scale": 1.0, "softcap": None} | terms
    parts, first = [], 0
    for size in SIZES:
        options = Options(Shard(first, size, CLASSES), ignore_index, label_smoothing, "none", **settings)
        own = target.narrow(1, first, size) if target.is_floating_point() else target
        own_weight = None if weight is None else weight.narrow(0, first, size)
        parts.append((logits.narrow(1, first, size).contiguous(), Target.of(own, own_weight, options)))
        first += size
    gradients = []
    numbers = torch.stack([local_numbers(*part, largest=True) for part in parts])
    for part, compared in parts:
        merged = merge(numbers, compared, largest=True)
        into, slope = torch.empty_like(part), compared.counts.double()
        write_gradient(part, compared, merged, slope, of_lse, into)
        gradients.append(into)
    lse = torch.where(compared.counts, merged.lse, 0)
    return merged.losses(compared), lse, merged.largest, merged.right, torch.cat(gradients, 1)


@pytest.mark.parametrize("terms", TERMS, ids=str)
@pytest.mark.parametrize("probabilities", (False, True), ids=("labels", "probabilities"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16), ids=str)
def test_parts_are_the_whole(dtype, probabilities, terms):
    logits, target, weight = operands((9, CLASSES), dtype, probabilities)
    logits[:3, :73] = -torch.inf  # nothing finite in the first parts
    logits[4:6, 70:] = logits[4:6, :1]  # ties
    if not probabilities:
        target[:3] = torch.tensor([100, -100, 130])
    of_lse = torch.linspace(-1, 1, 9, dtype=torch.float64)
    for w, e in itertools.product((None, weight), (0.0, 0.1)):
        options = {"label_smoothing": e, **terms}
        leaf = logits.double().requires_grad_()
        wide = target.double() if probabilities else target
        every = L.cross_entropy(
            leaf,
            wide,
            None if w is None else w.double(),
            reduction="none",
            **options,
            return_lse=True,
            return_accuracy=True,
            return_argmax=True,
        )
        upstream = [torch.ones_like(every.loss), of_lse]
        (gradient,) = torch.autograd.grad([every.loss, every.lse], leaf, upstream)
        losses, lse, largest, right, made = there(in_parts)(logits, target, w, of_lse, **options)
        limit = roundings(dtype)
        for mine, theirs in ((losses, every.loss), (lse, every.lse), (made.double(), gradient)):
            torch.testing.assert_close(mine, theirs.detach(), rtol=limit, atol=limit, equal_nan=True)
        assert torch.equal(largest, every.argmax)
        assert torch.equal(right.float(), every.accuracy)


INFINITE = {
    "elsewhere": {6: -torch.inf},
    "stands in for a class elsewhere": {5: -torch.inf},
    "the class": {1: -torch.inf},
    "beside the class": {0: -torch.inf},
    "all of the class's part": dict.fromkeys((0, 1, 2), -torch.inf),
    "all of another part": dict.fromkeys((5, 6, 7), -torch.inf),
    "all but one part": dict.fromkeys((0, 1, 2, 5, 6, 7), -torch.inf),
    "all": dict.fromkeys(range(8), -torch.inf),
    "the class, positive": {1: torch.inf},
    "two, positive": {1: torch.inf, 6: torch.inf},
    "both signs": {1: torch.inf, 6: -torch.inf},
    "no number": {6: torch.nan},
    "none": {},
}
"""Infinite logits of a row with class 1, of 8 classes in the parts 0 to 2, none, 3 to 4 and 5 to 7."""


@pytest.mark.parametrize("label_smoothing", (0.0, 0.1, 1.0))
@pytest.mark.parametrize("kind", ("labels", "probabilities", "certain"))
def test_infinities_are_torchs(kind, label_smoothing, monkeypatch):
    """A weight or a target of 0 times an infinite logarithm is NaN, and whatever is not 0, infinite."""
    monkeypatch.setattr(f"{__name__}.SIZES", (3, 0, 2, 3))
    monkeypatch.setattr(f"{__name__}.CLASSES", 8)
    rows = len(INFINITE)
    logits = torch.linspace(-1, 1, 8).repeat(rows, 1)
    for row, values in zip(logits, INFINITE.values(), strict=True):
        row[list(values)] = torch.tensor(list(values.values()))
    target = torch.ones(rows, dtype=torch.int64)
    if kind != "labels":
        certain = torch.nn.functional.one_hot(target, 8).float()
        target = certain if kind == "certain" else (certain + 0.1) / 1.8
    for weight in (
        None,
        torch.linspace(0.5, 1, 8),
        torch.linspace(0.5, 1, 8).index_fill(0, torch.tensor(6), 0),
    ):
        leaf = logits.double().requires_grad_()
        expected = torch.nn.functional.cross_entropy(
            leaf,
            target.double() if target.is_floating_point() else target,
            None if weight is None else weight.double(),
            reduction="none",
            label_smoothing=label_smoothing,
        )
        (gradient,) = torch.autograd.grad(expected.sum(), leaf)
        results = there(in_parts)(logits, target, weight, None, label_smoothing=label_smoothing)
        for mine, theirs in ((results[0], expected), (results[-1].double(), gradient)):
            torch.testing.assert_close(mine, theirs.detach(), rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.cpu
def test_what_a_process_sends_for_a_token():
    """The bytes of the table in docs/distributed.md, four for each number."""
    settings = {"z_loss": 0.0, "logit_scale": 1.0, "softcap": None}
    soft, labels, weight = torch.ones(2, 5), torch.tensor([0, 4]), torch.ones(5)
    for target, w, e, entropy, largest, expected in (
        (labels, None, 0.0, 0.0, False, 12),
        (labels, weight, 0.0, 0.0, False, 16),
        (labels, None, 0.1, 0.0, False, 20),
        (soft, weight, 0.1, 0.0, False, 16),
        (labels, None, 0.0, 0.1, False, 16),
        (labels, None, 0.0, 0.0, True, 20),
        (soft, None, 0.0, 0.0, True, 32),
    ):
        options = Options(Shard(0, 5, 5), -100, e, "none", entropy=entropy, **settings)
        compared = Target.of(target, w, options)
        sent = local_numbers(torch.zeros(2, 5), compared, largest)
        assert sent.shape == (len(numbers_of(compared, largest)), 2)
        assert sent.nbytes == 2 * expected

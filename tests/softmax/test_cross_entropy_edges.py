"""Terms of cross_entropy, and what rows have besides their loss, where logits are tied, masked or huge."""

from __future__ import annotations

import functools

import pytest
import torch
from kit import composed
from kit.cases import layouts
from kit.cases.case import normal
from kit.cases.classes import TERMS
from kit.device import there
from kit.softmax_terms import (
    EVERYTHING,
    SHAPES,
    each_reduction,
    each_term,
    operands,
    total,
)
from kit.tolerance import assert_as_accurate

import fused_losses.functional as L

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("by_kernels_only")]

cross_entropy = there(L.cross_entropy)


class TestArgmax:
    """Of the logits that the softmax is taken of; accuracy follows from it."""

    @pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
    @pytest.mark.parametrize("classes", (3, 10, 63, 64, 65, 1025, 33001, 70003))
    def test_every_place(self, classes, dtype):
        places = torch.tensor([0, 1, classes // 2, classes - 2, classes - 1, 0])
        logits = (normal(6, classes).clamp(-2, 2)).to(dtype)
        logits[torch.arange(6), places] = 3.0
        labels = places.clone()
        labels[1], labels[-1] = (places[1] + 1) % classes, -100
        for backward in ("fused", "recompute", "inplace"):
            given = logits.clone().requires_grad_() * 1
            out = cross_entropy(given, labels, **EVERYTHING, backward=backward)
            assert out.argmax.tolist() == [*places[:-1].tolist(), -1]
            assert out.accuracy == torch.tensor(4 / 5)

    @pytest.mark.parametrize("classes", (10, 131, 33001))
    def test_ties_infinities_and_nan(self, classes):
        row = torch.zeros(classes)
        far = row.clone()
        far[[3, classes - 1]] = torch.inf
        masked, all_masked = row - torch.inf, row - torch.inf
        masked[7] = -5
        odd = row.clone()
        odd[[0, 5]] = torch.nan
        odd[2] = 1
        logits = torch.stack([row, far, masked, all_masked, odd])
        labels = torch.tensor([0, 3, 7, 1, 2])
        argmax = cross_entropy(logits, labels, return_argmax=True).argmax.tolist()
        assert argmax[:4] == [0, 3, 7, 0] and -1 <= argmax[4] < classes
        # One class of two beyond the cap is as good as the other.
        saturated = torch.zeros(2, classes)
        saturated[:, 4:6] = torch.tensor([1e4, 3e4])
        out = cross_entropy(saturated, torch.tensor([4, 5]), softcap=5.0, reduction="none", **EVERYTHING)
        assert out.argmax.tolist() == [4, 4] and out.accuracy.tolist() == [1, 0]
        turned = cross_entropy(-saturated, torch.tensor([5, 5]), logit_scale=-2.0, return_argmax=True)
        assert turned.argmax.tolist() == [5, 5]

    @each_reduction
    def test_accuracy(self, reduction):
        for shape in SHAPES:
            for probabilities in (False, True):
                logits, target, weight = operands(shape, torch.float32, probabilities)
                options = {"weight": weight, "reduction": reduction}
                mine = cross_entropy(logits, target, **options, return_accuracy=True).accuracy
                theirs = composed.outputs(logits, target, **options).accuracy
                assert mine.dtype is torch.float32 and torch.equal(mine, theirs)

    def test_layouts(self):
        for shape in ((9, 131), (2, 21, 9, 11)):
            logits, labels, _ = operands(shape, torch.float32)
            expected = composed.outputs(logits, labels, **TERMS)
            for name, laid in layouts(logits):
                given = laid.requires_grad_()
                out = cross_entropy(given, labels, **TERMS, **EVERYTHING)
                assert torch.equal(out.argmax, expected.argmax), name
                torch.testing.assert_close(out.lse, expected.lse)
                assert out.lse.is_contiguous() and out.argmax.is_contiguous()
                mine = torch.autograd.grad(total(out), given)[0]
                leaf = logits.detach().clone().requires_grad_()
                theirs = torch.autograd.grad(total(composed.outputs(leaf, labels, **TERMS)), leaf)[0]
                torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


class TestEdges:
    @each_term
    def test_ignored_rows_may_hold_anything(self, terms):
        for shape in ((6, 10), (6, 131), (6, 7, 3)):
            logits, labels, _ = operands(shape, torch.float32)
            ignored = labels == -100
            broken = torch.where(ignored.unsqueeze(1), torch.nan, logits).requires_grad_()
            out = cross_entropy(broken, labels, **terms, **EVERYTHING)
            whole = cross_entropy(logits.requires_grad_(), labels, **terms, **EVERYTHING)
            for one, other in zip(out, whole, strict=True):
                assert torch.equal(one, other)
            assert not out.lse[ignored].any() and (out.argmax[ignored] == -1).all()
            mine, theirs = (torch.autograd.grad(total(o), x)[0] for o, x in ((out, broken), (whole, logits)))
            assert torch.equal(mine, theirs) and not mine[ignored.unsqueeze(1).expand(shape)].any()

    @each_term
    def test_everything_ignored(self, terms):
        for shape in ((5, 10), (5, 131), (2, 7, 3)):
            logits = normal(*shape).float().requires_grad_()
            labels = torch.full((*shape[:1], *shape[2:]), -100)
            out = cross_entropy(logits, labels, **terms, **EVERYTHING)
            assert out.loss.isnan() and out.z_loss.isnan() and out.accuracy.isnan()
            assert not out.lse.any() and (out.argmax == -1).all()
            assert not torch.autograd.grad(out.loss + out.lse.sum(), logits)[0].any()
            loss = cross_entropy(logits, labels, **terms, normalizer=4)
            assert loss == 0 and not torch.autograd.grad(loss, logits)[0].any()
            out = cross_entropy(logits, labels, **terms, **EVERYTHING, reduction="sum")
            assert out.loss == out.z_loss == out.accuracy == 0
            assert not torch.autograd.grad(total(out), logits)[0].any()

    @pytest.mark.parametrize("softcap", (None, 5.0))
    @pytest.mark.parametrize("backward", ("fused", "recompute"))
    @pytest.mark.parametrize("classes", (10, 131, 3000))
    def test_masked_and_huge_logits_have_gradients(self, classes, backward, softcap):
        logits = normal(6, classes)
        labels = torch.tensor([0, 1, 2, 3, 4, 5])
        logits[0, 6:] = -torch.inf
        logits[1, 2:8] = -1e30
        logits[2, 2] = 1e4
        logits[3, 4] = 1e4
        logits[4, 5:] = -200.0
        terms = {"z_loss": 1e-3, "entropy": 0.1, "logit_scale": 1.5, "softcap": softcap}
        results = []
        for function, options in (
            (cross_entropy, {"backward": backward, **EVERYTHING}),
            (composed.outputs, {}),
        ):
            for dtype in (torch.float32, torch.float64):
                leaf = logits.to(dtype).requires_grad_()
                out = function(leaf, labels, **terms, **options)
                (gradient,) = torch.autograd.grad(total(out), leaf)
                assert out.loss.isfinite() and gradient.isfinite().all()
                results.append((out.loss.detach(), out.lse.detach(), out.argmax, gradient))
        low, wide, eager, exact = results
        for one, other in zip(wide, exact, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)
        for one, other, reference in zip(low, eager, exact, strict=True):
            if reference.is_floating_point():
                assert_as_accurate(one, other, reference, dtype=torch.float32, terms=1.0)

    def test_log_sum_exp_at_infinity(self):
        row = normal(70).float()
        masked, far, unknown = (
            torch.where(torch.arange(70) < n, x, row)
            for n, x in ((70, -torch.inf), (1, torch.inf), (1, torch.nan))
        )
        for logits in (
            torch.stack([masked, far, unknown, row]),
            torch.stack([masked, far, unknown, row])[:, :9],
        ):
            labels = torch.tensor([0, 1, 2, -100])
            out = cross_entropy(logits, labels, reduction="none", **EVERYTHING)
            assert out.lse[0] == -torch.inf and out.lse[2].isnan() and out.lse[3] == 0
            bounded = cross_entropy(logits, labels, softcap=5.0, reduction="none", **EVERYTHING)
            torch.testing.assert_close(
                bounded.lse, composed.outputs(logits, labels, softcap=5.0).lse, equal_nan=True
            )

    def test_nothing_at_all(self):
        logits, labels = torch.zeros(0, 7, requires_grad=True), torch.zeros(0, dtype=torch.long)
        out = cross_entropy(logits, labels, **TERMS, **EVERYTHING, reduction="sum")
        assert out.loss == 0 and out.lse.shape == out.argmax.shape == (0,)
        assert torch.autograd.grad(total(out), logits)[0].shape == (0, 7)
        assert cross_entropy(logits, labels, **TERMS, normalizer=2.0) == 0


@pytest.mark.parametrize("shape", ((2003, 101), (2, 100_003), (40, 21, 33)), ids=str)
def test_threads_that_share_work_give_the_same_bits(shape):
    logits, labels, _ = operands(shape, torch.float32)
    results = []
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            leaf = logits.clone().requires_grad_()
            out = cross_entropy(leaf, labels, **TERMS, **EVERYTHING)
            results.append((*out, *torch.autograd.grad(total(out), leaf, retain_graph=True)))
            results[-1] += torch.autograd.grad(out.loss, leaf)
    finally:
        torch.set_num_threads(1)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("create_graph", (False, True), ids=("kernels", "composed"))
@pytest.mark.parametrize("backward", ("fused", "recompute"))
def test_log_sum_exps_of_a_mean_that_divides_by_zero(backward, create_graph):
    """Their gradient does not depend on the loss, which no one differentiates."""
    logits, target = torch.linspace(-2, 2, 30).view(6, 5), torch.tensor([-100, 0, 1, -100, 4, 2])

    def gradient(lse):
        leaf = logits.clone().requires_grad_()
        return torch.autograd.grad(lse(leaf), leaf, create_graph=create_graph)[0].detach()

    expected = gradient(lambda x: x.logsumexp(1)[target != -100].sum())
    for options in ({"weight": torch.zeros(5)}, {"normalizer": 0}):
        ours = there(functools.partial(L.cross_entropy, return_lse=True, backward=backward))
        torch.testing.assert_close(gradient(lambda x: ours(x, target, **options).lse.sum()), expected)  # noqa: B023

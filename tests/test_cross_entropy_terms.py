"""What cross_entropy has beyond torch: terms of the loss, a divisor of one's own, and more results."""

from __future__ import annotations

import copy
import functools
import itertools

import composed
import pytest
import torch
from cases import DTYPES, layouts
from cases.case import integers, normal, uniform
from cases.classes import TERMS
from device import there
from tolerance import assert_as_accurate

import fused_losses
import fused_losses.functional as L
from fused_losses.ops import OPERATORS
from fused_losses.registry import ARGMAX, STATISTICS

pytestmark = pytest.mark.gpu

cross_entropy = there(L.cross_entropy)
NOTHING = {"z_loss": 0.0, "entropy": 0.0, "logit_scale": 1.0, "softcap": None, "normalizer": None}
RETURNED = ("lse", "z_loss", "accuracy", "argmax")
EVERYTHING = {f"return_{name}": True for name in RETURNED}

# Short rows and long ones, a row of several stretches with a tail, images, a single row.
SHAPES = ((33, 10), (9, 131), (2, 33001), (2, 21, 9, 11), (70,))

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_reduction = pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
each_target = pytest.mark.parametrize("probabilities", (False, True), ids=("labels", "probabilities"))
each_term = pytest.mark.parametrize("terms", ({}, *({k: v} for k, v in TERMS.items()), TERMS), ids=str)


@pytest.fixture(autouse=True)
def by_kernels_only(monkeypatch):
    monkeypatch.setattr("fused_losses.dispatch.strict", True)


def operands(shape, dtype=torch.float64, probabilities=False):
    """Logits; labels of which every fifth is ignored, or probabilities; weights of classes."""
    axis = min(1, len(shape) - 1)
    logits, weight = (normal(*shape) * 3).to(dtype), (uniform(shape[axis]) + 0.1).to(dtype)
    if probabilities:
        return logits, normal(*shape, seed=3).softmax(axis).to(dtype), weight
    labels = integers(0, shape[axis], *shape[:axis], *shape[axis + 1 :])
    if labels.dim():
        labels.view(-1)[::5] = -100
        # Some of the others are right, or nothing would be seen of the accuracy.
        right = logits.argmax(axis).view(-1)[1::5]
        labels.view(-1)[1::5] = right
    return logits, labels, weight


def total(out):
    """All that is differentiable, with upstream gradients of every sign and none alike."""
    rows = torch.linspace(-1, 1.5, out.lse.numel(), dtype=out.lse.dtype).view(out.lse.shape)
    return out.loss.sum() + (rows * out.lse).sum() + 2 * out.z_loss.sum()


def assert_all_close(mine, theirs, dtype, **tolerances):
    for name, one, other in zip(composed.CrossEntropyOutput._fields, mine, theirs, strict=True):
        if name == "argmax":
            assert torch.equal(one, other)
        elif one is not None:
            torch.testing.assert_close(one, other.to(one.dtype), equal_nan=True, **tolerances, msg=name)


@each_dtype
@each_reduction
@each_target
@each_shape
def test_all_results_and_their_gradients(shape, probabilities, reduction, dtype):
    logits, target, weight = operands(shape, dtype, probabilities)
    options = {"weight": weight, "label_smoothing": 0.1, "reduction": reduction, **TERMS}

    def results(function, *tensors, **more):
        logits, target, weight = (
            x.detach().requires_grad_(x.is_floating_point() and i < 2) for i, x in enumerate(tensors)
        )
        out = function(logits * 1, target, **{**options, "weight": weight}, **more)
        of = [x for x in (logits, target) if x.requires_grad]
        return out, torch.autograd.grad(total(out), of)

    wide = [x.double() if x.is_floating_point() else x for x in (logits, target, weight)]
    exact, exact_gradients = results(composed.outputs, *wide)
    eager, eager_gradients = results(composed.outputs, logits, target, weight)
    strategies = ("fused", "recompute", "inplace") if reduction == "none" else ("fused", "recompute")
    for backward in strategies:
        mine, gradients = results(cross_entropy, logits, target, weight, backward=backward, **EVERYTHING)
        assert mine.loss.dtype is dtype and mine.argmax.dtype is torch.int64
        for name in ("lse", "z_loss"):
            assert getattr(mine, name).dtype is (dtype if dtype is torch.float64 else torch.float32)
        assert mine.accuracy.dtype is torch.float32
        assert torch.equal(mine.accuracy, exact.accuracy)
        assert torch.equal(mine.argmax, exact.argmax)
        if dtype is torch.float64:  # which has no better reference
            assert_all_close(mine, exact, dtype, rtol=1e-12, atol=1e-13)
            torch.testing.assert_close(gradients, exact_gradients, rtol=1e-11, atol=1e-13)
            continue
        for name in ("loss", "lse", "z_loss"):
            each = [getattr(out, name).detach() for out in (mine, eager, exact)]
            assert_as_accurate(*each, dtype=each[0].dtype, name=name, terms=float(exact.lse.abs().max()))
        for one, other, reference in zip(gradients, eager_gradients, exact_gradients, strict=True):
            # Upstream gradients of lse may cancel what the loss itself adds.
            terms = float(reference.abs().max())
            assert_as_accurate(one, other, reference, dtype=dtype, name="gradient", terms=terms)


def test_what_is_not_asked_for_is_none():
    logits, labels, _ = operands((9, 131), torch.float32)
    plain = cross_entropy(logits, labels, **TERMS)
    assert isinstance(plain, torch.Tensor)
    every = cross_entropy(logits, labels, **TERMS, **EVERYTHING)
    for n in range(1, 5):
        for names in itertools.combinations(RETURNED, n):
            out = cross_entropy(logits, labels, **TERMS, **{f"return_{name}": True for name in names})
            assert type(out) is L.CrossEntropyOutput and torch.equal(out.loss, plain)
            for name in RETURNED:
                value = getattr(out, name)
                assert torch.equal(value, getattr(every, name)) if name in names else value is None


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@each_reduction
def test_no_terms_are_the_plain_loss(reduction, dtype):
    for shape in SHAPES:
        logits, labels, _ = operands(shape, dtype)
        leaves = [logits.clone().requires_grad_() for _ in range(3)]
        losses = [
            cross_entropy(leaves[0], labels, reduction=reduction),
            cross_entropy(leaves[1], labels, reduction=reduction, **NOTHING),
            cross_entropy(leaves[2], labels, reduction=reduction, **EVERYTHING).loss,
        ]
        gradients = [
            torch.autograd.grad(x, y, torch.ones_like(x))[0] for x, y in zip(losses, leaves, strict=True)
        ]
        for loss, gradient in zip(losses, gradients, strict=True):
            assert torch.equal(loss, losses[0]) and torch.equal(gradient, gradients[0])


def test_entropy_of_parts_that_are_each_uniform():
    # A part of one number has no moment, until it is seen from a larger one.
    for shape in ((3, 33000), (3, 131), (2, 64, 8, 8)):
        logits = torch.zeros(shape, dtype=torch.float64)
        logits[:, shape[1] // 2 :] -= 1.5
        logits[:, -1] += 3
        labels = torch.zeros(shape[:1] + shape[2:], dtype=torch.long)
        mine, exact = (
            function(x, labels, entropy=0.3)
            for function, x in (
                (cross_entropy, logits.clone().requires_grad_()),
                (composed.cross_entropy, logits.clone().requires_grad_()),
            )
        )
        torch.testing.assert_close(mine, exact, rtol=1e-12, atol=1e-13)


@pytest.mark.cpu
def test_who_does_not_use_lse_gets_what_the_forward_wrote():
    logits, labels, _ = operands((9, 131), torch.float32)
    out = L.cross_entropy(logits.requires_grad_(), labels, **TERMS, **EVERYTHING)
    ready = out.loss.grad_fn.gradients[0]
    (gradient,) = torch.autograd.grad(out.loss, logits, retain_graph=True)
    assert gradient.data_ptr() == ready.data_ptr()
    kept = gradient.clone()
    again = torch.autograd.grad(out.loss + 2 * out.lse.sum(), logits, retain_graph=True)[0]
    assert torch.equal(gradient, kept) and not torch.equal(again, kept)
    of_lse = torch.autograd.grad(out.lse.sum(), logits, retain_graph=True)[0]
    torch.testing.assert_close(again, kept + 2 * of_lse)
    # From the rows' numbers that were kept, rounded, instead of those that the forward had.
    torch.testing.assert_close(torch.autograd.grad(out.loss, logits)[0], kept)


@each_dtype
@each_term
@pytest.mark.parametrize("name", ("lse", "z_loss"))
def test_gradients_of_one_result_alone(name, terms, dtype):
    for shape in ((33, 10), (9, 131), (2, 21, 9, 11)):
        logits, labels, weight = operands(shape, dtype)
        options = {"weight": weight, "z_loss": 0.5} | terms
        leaf = logits.clone().requires_grad_()
        out = cross_entropy(leaf, labels, **options, return_lse=True, return_z_loss=True)
        (gradient,) = torch.autograd.grad(getattr(out, name).sum(), leaf)
        wide = logits.double().requires_grad_()
        exact = composed.outputs(wide, labels, **{**options, "weight": weight.double()})
        (reference,) = torch.autograd.grad(getattr(exact, name).sum(), wide)
        low = logits.clone().requires_grad_()
        eager = composed.outputs(low, labels, **options)
        (theirs,) = torch.autograd.grad(getattr(eager, name).sum(), low)
        if dtype is torch.float64:
            torch.testing.assert_close(gradient, reference, rtol=1e-12, atol=1e-14)
        else:
            assert_as_accurate(gradient, theirs, reference, dtype=dtype, name=name)
        ignored = (labels == -100).unsqueeze(1).expand(shape)
        assert not gradient[ignored].any() and gradient[~ignored].any()


@pytest.mark.cpu
def test_in_place():
    logits, labels, _ = operands((9, 131), torch.float32)
    expected = L.cross_entropy(logits.clone().requires_grad_(), labels, **TERMS, **EVERYTHING)
    for reduction in ("mean", "none"):
        leaf = logits.clone().requires_grad_()
        given, memory = leaf * 1, None
        memory = given.data_ptr()
        out = L.cross_entropy(given, labels, **TERMS, **EVERYTHING, backward="inplace", reduction=reduction)
        assert torch.equal(out.argmax, expected.argmax) and torch.equal(out.lse, expected.lse)
        (gradient,) = torch.autograd.grad(out.loss.sum(), given, retain_graph=True)
        assert gradient.data_ptr() == memory
        other = logits.clone().requires_grad_()
        L.cross_entropy(other, labels, **TERMS, reduction=reduction).sum().backward()
        torch.testing.assert_close(gradient, other.grad)
    given = logits.clone().requires_grad_() * 1
    out = L.cross_entropy(given, labels, **TERMS, return_lse=True, backward="inplace")
    with pytest.raises(RuntimeError, match="gradient of lse"):
        (out.loss + out.lse.sum()).backward()


class TestNormalizer:
    def gradient(self, function, logits, *arguments, upstream=1.0, **options):
        leaf = logits.clone().requires_grad_()
        loss = function(leaf, *arguments, **options)
        return loss.detach(), torch.autograd.grad(loss, leaf, torch.tensor(upstream, dtype=loss.dtype))[0]

    @each_dtype
    @each_target
    @pytest.mark.parametrize("terms", ({}, TERMS), ids=str)
    def test_values(self, terms, probabilities, dtype):
        for shape in SHAPES:
            logits, target, weight = operands(shape, dtype, probabilities)
            options = {"weight": weight, "label_smoothing": 0.1, "normalizer": 7.5, **terms}
            wide = [x.double() if x.is_floating_point() else x for x in (logits, target)]
            for upstream in (1.0, 0.375):
                exact = self.gradient(
                    composed.cross_entropy, *wide, upstream=upstream, **{**options, "weight": weight.double()}
                )
                eager = self.gradient(composed.cross_entropy, logits, target, upstream=upstream, **options)
                for backward in ("fused", "recompute"):
                    mine = self.gradient(
                        cross_entropy, logits, target, upstream=upstream, backward=backward, **options
                    )
                    if dtype is torch.float64:
                        torch.testing.assert_close(mine, exact, rtol=1e-12, atol=1e-14)
                        continue
                    for one, other, reference in zip(mine, eager, exact, strict=True):
                        terms_size = 1.0 if one.dim() == 0 else float(reference.abs().max())
                        assert_as_accurate(one, other, reference, dtype=dtype, terms=terms_size)

    def test_of_every_kind(self):
        logits, labels, _ = operands((9, 131), torch.float32)
        expected = self.gradient(cross_entropy, logits, labels, normalizer=6.0)
        torch.testing.assert_close(expected[0] * 6, cross_entropy(logits, labels, reduction="sum"))
        for normalizer in (
            6,
            torch.tensor(6),
            torch.tensor(6.0),
            torch.tensor([6.0], dtype=torch.bfloat16),
            torch.tensor([[6.0]], dtype=torch.float64),
            torch.tensor(6.0, requires_grad=True),
        ):
            mine = self.gradient(cross_entropy, logits, labels, normalizer=normalizer)
            assert torch.equal(mine[0], expected[0]) and torch.equal(mine[1], expected[1])

    @pytest.mark.cpu
    def test_refused(self):
        logits, labels, _ = operands((9, 131), torch.float32)
        for reduction in ("sum", "none"):
            with pytest.raises(ValueError, match="normalizer"):
                L.cross_entropy(logits, labels, normalizer=2.0, reduction=reduction)
        with pytest.raises(ValueError, match="one number"):
            L.cross_entropy(logits, labels, normalizer=torch.ones(2))


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


def test_without_gradients():
    logits, labels, _ = operands((9, 131), torch.float32)
    expected = cross_entropy(logits.clone().requires_grad_(), labels, **TERMS, **EVERYTHING)
    assert expected.lse.requires_grad and expected.z_loss.requires_grad
    assert not expected.argmax.requires_grad and not expected.accuracy.requires_grad
    plain = cross_entropy(logits, labels, **TERMS, **EVERYTHING)
    with torch.no_grad():
        muted = cross_entropy(logits.clone().requires_grad_(), labels, **TERMS, **EVERYTHING)
    for out in (plain, muted):
        for one, other in zip(out, expected, strict=True):
            assert not one.requires_grad
            torch.testing.assert_close(one, other.detach(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_autocast(dtype):
    logits, labels, weight = operands((9, 131), dtype)
    leaf = logits.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = cross_entropy(leaf, labels, weight.float(), **TERMS, **EVERYTHING)
    assert out.loss.dtype is out.lse.dtype is out.z_loss.dtype is torch.float32
    wide = logits.float().requires_grad_()
    exact = composed.outputs(wide, labels, weight.float(), **TERMS)
    assert_all_close(out, exact, torch.float32, rtol=1e-5, atol=0)
    (gradient,), (theirs,) = (torch.autograd.grad(total(o), x) for o, x in ((out, leaf), (exact, wide)))
    assert gradient.dtype is dtype
    torch.testing.assert_close(gradient.float(), theirs, rtol=2**-8, atol=2**-9)


# Numbers that gradcheck perturbs one by one: few, but of both kinds of rows.
SMALL = ((4, 5), (2, 3, 2), (3, 70))


@pytest.mark.parametrize("shape", SMALL, ids=str)
@each_target
@each_term
@pytest.mark.cpu
def test_numerical_derivatives(terms, probabilities, shape, monkeypatch):
    logits, target, weight = operands(shape, torch.float64, probabilities)
    inputs = (
        (logits.requires_grad_(), target.requires_grad_()) if probabilities else (logits.requires_grad_(),)
    )
    for reduction in ("mean", "none"):
        options = {"weight": weight, "label_smoothing": 0.1, "reduction": reduction, **terms}
        if reduction == "mean":
            options["normalizer"] = torch.tensor(3.0)

        def function(logits, target=target, options=options):
            out = L.cross_entropy(logits, target, **options, return_lse=True, return_z_loss=True)
            return out[:3]

        assert torch.autograd.gradcheck(function, inputs, fast_mode=shape[1] == 70)
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


class TestByTorch:
    """What kernels leave to torch's operators has the same results."""

    def function(self, shape, probabilities, module, **more):
        _, target, weight = operands(shape, torch.float64, probabilities)
        options = {"weight": weight, "label_smoothing": 0.1, **TERMS, **more}
        if module is L:
            options |= {"return_lse": True, "return_z_loss": True}
        return lambda x: total(
            (module.cross_entropy if module is L else module.outputs)(x, target, **options)
        )

    @pytest.mark.cpu
    @each_target
    @pytest.mark.parametrize("shape", ((6, 10), (4, 70), (2, 5, 3)), ids=str)
    def test_transforms(self, probabilities, shape):
        x = operands(shape)[0]
        stacked = torch.stack([x, 0.5 * x])
        direction = torch.full_like(x, 0.01)
        for transform in (
            lambda f: torch.func.grad(f)(x),
            lambda f: torch.func.vmap(torch.func.grad(f))(stacked),
            lambda f: torch.func.vmap(f)(stacked),
            lambda f: torch.func.jvp(f, (x,), (direction,)),
            lambda f: (
                torch.func.jacrev(torch.func.grad(f))(x) if shape == (6, 10) else torch.func.jacrev(f)(x)
            ),
        ):
            mine, theirs = (
                transform(self.function(shape, probabilities, module)) for module in (L, composed)
            )
            torch.testing.assert_close(mine, theirs)

    @pytest.mark.cpu
    @each_target
    @pytest.mark.parametrize("shape", ((6, 10), (4, 70), (2, 5, 3)), ids=str)
    def test_forward_mode(self, probabilities, shape):
        x = operands(shape)[0]

        def tangent(function):
            with torch.autograd.forward_ad.dual_level():
                dual = torch.autograd.forward_ad.make_dual(x, torch.full_like(x, 0.01))
                return torch.autograd.forward_ad.unpack_dual(function(dual)).tangent

        mine, theirs = (tangent(self.function(shape, probabilities, module)) for module in (L, composed))
        torch.testing.assert_close(mine, theirs)

    @each_reduction
    @each_target
    @pytest.mark.parametrize("shape", ((6, 10), (4, 70), (2, 5, 3)), ids=str)
    def test_create_graph(self, probabilities, shape, reduction):
        x = operands(shape)[0]

        def derivatives(module):
            leaf = x.clone().requires_grad_()
            value = self.function(shape, probabilities, module, reduction=reduction)(leaf).square()
            (gradient,) = torch.autograd.grad(value, leaf, create_graph=True)
            return gradient, torch.autograd.grad(gradient.square().sum(), leaf)[0]

        torch.testing.assert_close(derivatives(L), derivatives(composed))

    def test_batched_upstream_gradients(self):
        logits, labels, _ = operands((4, 10))
        basis = torch.eye(4, dtype=torch.float64)
        results = []
        for function, more in ((L.cross_entropy, {"return_lse": True}), (composed.outputs, {})):
            leaf = logits.clone().requires_grad_()
            out = function(leaf, labels, **TERMS, **more, reduction="none")
            results.append(
                torch.autograd.grad((out.loss, out.lse), leaf, (basis, 2 * basis), is_grads_batched=True)[0]
            )
        torch.testing.assert_close(*results)

    @pytest.mark.cpu
    @pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16), ids=str)
    @each_reduction
    def test_subclasses(self, reduction, dtype, monkeypatch):
        class Tagged(torch.Tensor):
            pass

        logits, labels, weight = operands((6, 10), dtype)
        options = {"weight": weight, "label_smoothing": 0.1, "reduction": reduction, **TERMS, **EVERYTHING}
        results = []
        for kind in (torch.Tensor, Tagged):
            monkeypatch.setattr("fused_losses.dispatch.strict", kind is torch.Tensor)
            leaf = logits.clone().requires_grad_()
            out = L.cross_entropy(leaf.as_subclass(kind), labels, **options)
            results.append((*out, *torch.autograd.grad(total(out), leaf)))
        tolerance = {torch.bfloat16: 2**-5, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
        for one, other in zip(*results, strict=True):
            assert one.dtype is other.dtype
            torch.testing.assert_close(one, other.as_subclass(torch.Tensor), rtol=tolerance, atol=tolerance)

    @pytest.mark.cpu
    def test_strictly(self):
        logits, labels, _ = operands((6, 10), torch.float32)

        class Tagged(torch.Tensor):
            pass

        with pytest.raises(RuntimeError, match="FUSED_LOSSES_STRICT"):
            L.cross_entropy(logits.as_subclass(Tagged), labels, **TERMS, **EVERYTHING)

    @pytest.mark.cpu
    def test_masked_logits_differentiated_twice(self):
        logits, labels, _ = operands((4, 10))
        logits[:, 7:] = -torch.inf
        labels.clamp_(max=6)
        leaf = logits.requires_grad_()
        for terms in (TERMS, {**TERMS, "softcap": None}):
            out = L.cross_entropy(leaf, labels, **terms, return_lse=True)
            (gradient,) = torch.autograd.grad(out.loss + out.lse.sum(), leaf, create_graph=True)
            assert gradient.isfinite().all()
            assert torch.autograd.grad(gradient.square().sum(), leaf)[0].isfinite().all()


@pytest.mark.cpu
@pytest.mark.parametrize("dynamic", (False, True))
@pytest.mark.parametrize("reduction", ("mean", "none"))
def test_compiled_without_breaks(reduction, dynamic):
    torch._dynamo.reset()
    _, _, weight = operands((6, 70), torch.float32)
    options = {"weight": weight, "label_smoothing": 0.1, "reduction": reduction, **TERMS}

    def step(x, labels, normalizer):
        more = {"normalizer": normalizer} if reduction == "mean" else {}
        out = L.cross_entropy(x * 1, labels, **options, **EVERYTHING, **more, backward="recompute")
        return total(out), out

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic)
    for rows in (6, 9):
        logits, labels, _ = operands((rows, 70), torch.float32)
        normalizer = torch.tensor(float(rows))
        mine, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        value, out = compiled(mine, labels, normalizer)
        value.backward()
        expected, other = step(theirs, labels, normalizer)
        expected.backward()
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(tuple(out), tuple(other))
        torch.testing.assert_close(mine.grad, theirs.grad)


@pytest.mark.cpu
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16), ids=str)
def test_operators_do_what_their_fakes_say(dtype):
    operators = OPERATORS["cross_entropy"]
    utils = ("test_schema", "test_faketensor")
    check = functools.partial(torch.library.opcheck, test_utils=utils)
    divisor = torch.tensor(3.0, dtype=torch.float64)
    for shape, terms in itertools.product(
        ((6, 10), (6, 70), (2, 3, 4, 5)), ((0.1, 0.0, 1.0, 0.0), (0.1, 0.2, 0.5, 6.0))
    ):
        for probabilities, reduction in itertools.product((False, True), (0, 1)):
            logits, target, weight = operands(shape, dtype, probabilities)
            options = (-100, 0.1, terms, divisor if reduction else None)
            wanted = 3 if probabilities else 1
            for bits in (STATISTICS, ARGMAX, wanted | STATISTICS | ARGMAX):
                tail = (*options, None, reduction, None, bits)
                check(operators.forward, (logits, target, weight, None, *tail))
                check(operators.forward_inplace, (logits.clone(), target, weight, None, *tail))
            tail = (*options, None, reduction, None, STATISTICS)
            loss, statistics = operators.forward(logits, target, weight, None, *tail)
            assert statistics.shape == (3 if terms[1] else 2, logits.numel() // shape[1])
            rows = torch.linspace(-1, 1, statistics.shape[1]).view(shape[:1] + shape[2:])
            for extra, of_lse in itertools.product((None, statistics), (None, rows, rows.to(dtype))):
                arguments = (torch.full_like(loss, 0.5), logits, target, weight, extra)
                arguments += (*options, of_lse, reduction, wanted)
                check(operators.backward, arguments)
                ready = operators.backward(*arguments)
                check(operators.backward_into, (ready, False, *arguments))


@pytest.mark.cpu
def test_wrong_operands_of_the_operators():
    operators = OPERATORS["cross_entropy"]
    logits, labels, _ = operands((6, 10), torch.float32)

    def forward(terms=(), normalizer=None):
        return operators.forward(logits, labels, None, None, -100, 0.0, terms, normalizer, None, 1, None, 0)

    for terms in ((0.1,), (0.1,) * 5):
        with pytest.raises(RuntimeError, match="four terms"):
            forward(terms)
    for normalizer in (torch.tensor(2.0), torch.ones(1, dtype=torch.float64)):
        with pytest.raises(RuntimeError, match="normalizer"):
            forward((), normalizer)
    nll = OPERATORS["nll_loss"]
    with pytest.raises(RuntimeError, match="terms"):
        nll.forward(logits, labels, None, None, -100, 0.0, (0.1, 0.0, 1.0, 0.0), None, None, 1, None, 0)
    with pytest.raises(RuntimeError, match="another shape"):
        one = torch.ones(())
        operators.backward(one, logits, labels, None, None, -100, 0.0, (), None, torch.ones(5), 1, 1)


def test_the_divisor_of_nll_loss():
    logits, labels, _ = operands((9, 131), torch.float32)
    divisor = torch.tensor(4.0, dtype=torch.float64)
    log_p = logits.log_softmax(1)
    options = (-100, 0.0, (), divisor, None)
    loss, gradient = there(OPERATORS["nll_loss"].forward)(log_p, labels, None, None, *options, 1, None, 1)
    expected = torch.nn.functional.nll_loss(log_p, labels, reduction="sum")
    torch.testing.assert_close(loss, expected / 4)
    hot = torch.nn.functional.one_hot(labels.clamp(0), 131) * (labels >= 0)[:, None]
    torch.testing.assert_close(gradient, hot * -0.25)


@pytest.mark.cpu
class TestRefused:
    def test_values(self):
        logits, labels, _ = operands((9, 131), torch.float32)
        for softcap in (-1.0, 0.0, float("nan")):
            with pytest.raises(ValueError, match="softcap"):
                L.cross_entropy(logits, labels, softcap=softcap)

    @pytest.mark.parametrize("name", ("z_loss", "entropy", "logit_scale", "softcap"))
    def test_types(self, name):
        logits, labels, _ = operands((9, 131), torch.float32)
        for value in (torch.tensor(0.1), "0.1", [0.1]):
            with pytest.raises(TypeError, match=name):
                L.cross_entropy(logits, labels, **{name: value})

    def test_torchs_own_errors_stay(self):
        logits, labels, weight = operands((9, 131), torch.float32)
        for more in ({}, TERMS, {**TERMS, **EVERYTHING}):
            with pytest.raises((RuntimeError, ValueError)):
                L.cross_entropy(logits, labels[:-1], **more)
            with pytest.raises(RuntimeError):
                L.cross_entropy(logits, labels, weight[:-1], **more)
            with pytest.raises(ValueError):
                L.cross_entropy(logits, labels, reduction="median", **more)
            with pytest.raises(RuntimeError):
                L.cross_entropy(logits, labels, label_smoothing=2.0, **more)


class TestModule:
    def test_is_the_function(self):
        logits, labels, weight = operands((9, 131), torch.float32)
        module = fused_losses.CrossEntropyLoss(weight, label_smoothing=0.1, **TERMS, **EVERYTHING)
        expected = L.cross_entropy(logits, labels, weight, label_smoothing=0.1, **TERMS, **EVERYTHING)
        for each in (module, copy.deepcopy(module)):
            for one, other in zip(each(logits, labels), expected, strict=True):
                assert torch.equal(one, other)
        assert list(module.state_dict()) == ["weight"]

    def test_of_torchs_pickles(self):
        """A module that torch.nn has made has none of these attributes."""
        logits, labels, _ = operands((9, 131), torch.float32)
        module = fused_losses.CrossEntropyLoss()
        for name in ("backward", *TERMS, *(f"return_{name}" for name in RETURNED)):
            module.__dict__.pop(name, None)
        assert torch.equal(module(logits, labels), L.cross_entropy(logits, labels))

"""What cross_entropy has beyond torch: terms of the loss, a divisor of one's own, and more results.

By kernels; tests/softmax/test_cross_entropy_composed.py has what is left to torch's operators.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from kit import composed
from kit.cases.classes import TERMS
from kit.device import autocast, there
from kit.softmax_terms import (
    EVERYTHING,
    RETURNED,
    SHAPES,
    assert_all_close,
    each_dtype,
    each_reduction,
    each_target,
    each_term,
    operands,
    total,
)
from kit.tolerance import assert_as_accurate

import fused_losses.functional as L

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("by_kernels_only")]

cross_entropy = there(L.cross_entropy)
NOTHING = {"z_loss": 0.0, "entropy": 0.0, "logit_scale": 1.0, "softcap": None, "normalizer": None}

each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


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
    ((ready,),) = out.loss.grad_fn.gradients
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
    with autocast():
        out = cross_entropy(leaf, labels, weight.float(), **TERMS, **EVERYTHING)
    assert out.loss.dtype is out.lse.dtype is out.z_loss.dtype is torch.float32
    wide = logits.float().requires_grad_()
    exact = composed.outputs(wide, labels, weight.float(), **TERMS)
    assert_all_close(out, exact, torch.float32, rtol=1e-5, atol=0)
    (gradient,), (theirs,) = (torch.autograd.grad(total(o), x) for o, x in ((out, leaf), (exact, wide)))
    assert gradient.dtype is dtype
    torch.testing.assert_close(gradient.float(), theirs, rtol=2**-8, atol=2**-9)

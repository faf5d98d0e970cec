"""Terms of cross_entropy under all that wants to see through the operators, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from kit import composed
from kit.cases.classes import TERMS
from kit.softmax_terms import (
    EVERYTHING,
    RETURNED,
    each_reduction,
    each_target,
    each_term,
    operands,
    total,
)
from kit.strictness import strictly

import fused_losses
import fused_losses.functional as L

pytestmark = pytest.mark.usefixtures("by_kernels_only")

# Numbers that gradcheck perturbs one by one: few, but of both kinds of rows.
SMALL = ((4, 5), (2, 3, 2), (3, 70))


@pytest.mark.parametrize("shape", SMALL, ids=str)
@each_target
@each_term
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

    @pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16), ids=str)
    @each_reduction
    def test_subclasses(self, reduction, dtype):
        class Tagged(torch.Tensor):
            pass

        logits, labels, weight = operands((6, 10), dtype)
        options = {"weight": weight, "label_smoothing": 0.1, "reduction": reduction, **TERMS, **EVERYTHING}
        results = []
        for kind in (torch.Tensor, Tagged):
            leaf = logits.clone().requires_grad_()
            with strictly(kind is torch.Tensor):
                out = L.cross_entropy(leaf.as_subclass(kind), labels, **options)
                results.append((*out, *torch.autograd.grad(total(out), leaf)))
        tolerance = {torch.bfloat16: 2**-5, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
        for one, other in zip(*results, strict=True):
            assert one.dtype is other.dtype
            torch.testing.assert_close(one, other.as_subclass(torch.Tensor), rtol=tolerance, atol=tolerance)

    def test_strictly(self):
        logits, labels, _ = operands((6, 10), torch.float32)

        class Tagged(torch.Tensor):
            pass

        with pytest.raises(RuntimeError, match="FUSED_LOSSES_STRICT"):
            L.cross_entropy(logits.as_subclass(Tagged), labels, **TERMS, **EVERYTHING)

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

"""The normalizer of cross_entropy; its operators and those of nll_loss, with terms and divisors."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch
from kit import composed
from kit.cases.classes import TERMS
from kit.device import there
from kit.softmax_terms import (
    SHAPES,
    each_dtype,
    each_target,
    operands,
)
from kit.tolerance import assert_as_accurate
from torch.utils._python_dispatch import TorchDispatchMode

import fused_losses.functional as L
from fused_losses.losses.softmax_outputs import divisor_of
from fused_losses.ops import OPERATORS
from fused_losses.registry import ARGMAX, STATISTICS

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("by_kernels_only")]

cross_entropy = there(L.cross_entropy)


class _Recorded(TorchDispatchMode):
    """The names of torch's operators that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


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
            torch.tensor(6.0, requires_grad=True).detach(),
        ):
            mine = self.gradient(cross_entropy, logits, labels, normalizer=normalizer)
            assert torch.equal(mine[0], expected[0]) and torch.equal(mine[1], expected[1])

    @pytest.mark.cpu
    @pytest.mark.parametrize("normalizer", (6, 6.0, torch.tensor(6)), ids=("int", "float", "tensor"))
    def test_nothing_is_copied_to_the_device(self, normalizer):
        """A copy would wait for the device; a number is an argument of a kernel that fills."""
        with _Recorded() as recorded:
            divisor = divisor_of(normalizer, "mean", torch.device("meta"))
        assert divisor.shape == () and divisor.dtype is torch.float64 and divisor.is_meta
        assert recorded.names and not any("copy" in name for name in recorded.names), recorded.names

    @pytest.mark.cpu
    def test_refused(self):
        logits, labels, _ = operands((9, 131), torch.float32)
        for reduction in ("sum", "none"):
            with pytest.raises(ValueError, match="normalizer"):
                L.cross_entropy(logits, labels, normalizer=2.0, reduction=reduction)
        with pytest.raises(ValueError, match="one number"):
            L.cross_entropy(logits, labels, normalizer=torch.ones(2))


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
        with pytest.raises(RuntimeError, match="terms must hold no or four numbers"):
            forward(terms)
    for normalizer in (torch.tensor(2.0), torch.ones(1, dtype=torch.float64)):
        with pytest.raises(RuntimeError, match="normalizer"):
            forward((), normalizer)
    nll = OPERATORS["nll_loss"]
    with pytest.raises(RuntimeError, match="terms"):
        nll.forward(logits, labels, None, None, -100, 0.0, (0.1, 0.0, 1.0, 0.0), None, None, 1, None, 0)
    with pytest.raises(RuntimeError, match="shape"):
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

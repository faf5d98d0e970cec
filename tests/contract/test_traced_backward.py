"""A backward under those who follow every operator: make_fx, fake tensors, compiled autograd."""

from __future__ import annotations

import pytest
import torch
from kit.contract import call, case_of, each_loss, each_reduction, expected
from kit.older_torch import TORCH
from torch._dynamo import compiled_autograd
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

pytestmark = [
    pytest.mark.cpu,
    pytest.mark.filterwarnings("ignore:reduction", "ignore:There is a performance drop"),
]


@each_loss
@each_reduction
@pytest.mark.parametrize("mode", ("real", "fake", "symbolic"))
def test_make_fx_of_a_backward(name, reduction, mode):
    """The graph computes the gradient of whatever it is given, also of another upstream gradient."""
    case = case_of(name)
    if name == "gaussian_nll_loss" and mode != "real":
        pytest.skip("torch's own looks at the values of var")
    if name == "multilabel_margin_loss" and mode == "symbolic" and TORCH < (2, 14):
        pytest.skip("torch's own operators for it are wrong")

    def gradient(input, upstream):
        leaf = input.detach().requires_grad_()
        loss = call(case, case.ours, leaf, reduction=reduction)
        return torch.autograd.grad(loss, leaf, upstream.expand_as(loss))[0]

    input, one = case.operands[0], torch.ones((), dtype=torch.float64)
    graph = make_fx(gradient, tracing_mode=mode, _allow_non_fake_inputs=True)(input, one)
    for scale, upstream in ((1.0, 1.0), (0.5, 0.3)):
        again = case_of(name)
        again.operands = (input * scale, *case.operands[1:])
        traced = graph(again.operands[0], one * upstream)
        torch.testing.assert_close(traced, expected(again, upstream, reduction=reduction))


@each_loss
@pytest.mark.parametrize("backward", ("fused", "recompute"))
def test_a_backward_among_fake_tensors(name, backward):
    case = case_of(name)
    input = case.operands[0].clone().requires_grad_()
    loss = call(case, case.ours, input, backward=backward)
    with FakeTensorMode(allow_non_fake_inputs=True):
        (gradient,) = torch.autograd.grad(loss, input)
    assert gradient.shape == input.shape


@pytest.fixture
def compiled_backwards():
    """Turns compiled autograd on for a `with` block; graphs may not break."""
    torch._dynamo.reset()
    return lambda: compiled_autograd._enable(torch.compile(backend="eager", fullgraph=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, backward, reduction, upstream",
    (
        ("cross_entropy", "fused", "mean", None),
        ("cross_entropy", "recompute", "mean", 0.5),
        ("cross_entropy", "inplace", "mean", None),
        ("gaussian_nll_loss", "fused", "mean", 0.5),
        ("gaussian_nll_loss", "inplace", "mean", 0.5),
        ("triplet_margin_loss", "fused", "none", None),
        ("triplet_margin_loss", "inplace", "none", 0.5),
    ),
)
def test_compiled_autograd(name, backward, reduction, upstream, compiled_backwards):
    case = case_of(name)
    for _ in range(3):  # of one and the same graph
        leaves = case.sample()[0]
        loss = call(case, case.ours, leaves[0] * 1, *leaves[1:], reduction=reduction, backward=backward).sum()
        loss = loss if upstream is None else loss * upstream
        with compiled_backwards():
            loss.backward(retain_graph=backward != "inplace")
        torch.testing.assert_close(leaves[0].grad, expected(case, upstream or 1.0, reduction=reduction))
        if backward != "inplace":
            first, leaves[0].grad = leaves[0].grad, None
            with compiled_backwards():
                loss.backward()
            assert leaves[0].grad.data_ptr() != first.data_ptr()
            torch.testing.assert_close(leaves[0].grad, first)

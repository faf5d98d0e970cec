"""Backwards of one graph in two threads: each gradient has memory of its own, or there is an error."""

from __future__ import annotations

import sys
import threading

import pytest
import torch
from kit.contract import call, case_of, expected

import fused_losses.functional as L
from fused_losses import autograd
from fused_losses.linear import autograd as linear_autograd

pytestmark = pytest.mark.cpu

FILES = (autograd.__file__, linear_autograd.__file__)


def in_thread(function):
    thread = threading.Thread(target=function)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()


def run_both(first, second, step):
    """Runs `first` in a thread, and `second` in another one before that step of the first one's backward.

    A step is an instruction of Python, before any of which the interpreter may turn to another thread.
    Returns whether there is such a step.
    """
    steps = 0

    def trace(frame, event, _):
        nonlocal steps
        if frame.f_code.co_filename not in FILES:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            steps += 1
            if steps == step:
                in_thread(second)
        return trace

    def traced():
        sys.settrace(trace)
        try:
            first()
        finally:
            sys.settrace(None)

    in_thread(traced)
    return steps >= step


def backwards_in_any_order(loss_of):
    """What two backwards return of the same loss, for every step of one at which the other may come."""
    # From Python 3.12 on, a function has such steps from the first traced call on.
    loss, input = loss_of()
    run_both(lambda: torch.autograd.grad(loss.sum(), input), lambda: None, 1)
    step = 0
    while True:
        step += 1
        loss, input = loss_of()
        results = []

        def backward(loss=loss, input=input, results=results):
            try:
                results.append(torch.autograd.grad(loss, input, torch.ones_like(loss), retain_graph=True)[0])
            except RuntimeError as error:
                results.append(error)

        if not run_both(backward, backward, step):
            break
        yield results
    assert step > 20  # backwards have many instructions


@pytest.mark.parametrize("backward", ("fused", "recompute"))
@pytest.mark.parametrize("reduction", ("mean", "none"))
@pytest.mark.parametrize("name", ("mse_loss", "cross_entropy", "gaussian_nll_loss"))
def test_each_backward_has_a_buffer_of_its_own(name, reduction, backward):
    case = case_of(name)

    def loss_of():
        input = case.operands[0].clone().requires_grad_()
        return call(case, case.ours, input, reduction=reduction, backward=backward), input

    right = expected(case, reduction=reduction)
    for first, second in backwards_in_any_order(loss_of):
        assert first.data_ptr() != second.data_ptr()
        torch.testing.assert_close(first, right)
        torch.testing.assert_close(second, right)


def test_each_backward_of_a_head_has_buffers_of_its_own():
    hidden, head, labels = torch.randn(8, 5), torch.randn(7, 5), torch.randint(0, 7, (8,))

    def loss_of():
        weight = head.clone().requires_grad_()
        return L.linear_cross_entropy(hidden, weight, labels), weight

    right = torch.autograd.grad(*loss_of())[0]
    for first, second in backwards_in_any_order(loss_of):
        assert first.data_ptr() != second.data_ptr()
        torch.testing.assert_close(first, right)
        torch.testing.assert_close(second, right)


@pytest.mark.parametrize("reduction", ("mean", "none"))
@pytest.mark.parametrize("name", ("mse_loss", "cross_entropy", "gaussian_nll_loss"))
def test_one_of_them_overwrites_the_input(name, reduction):
    case = case_of(name)

    def loss_of():
        input = case.operands[0].clone().requires_grad_() * 1
        return call(case, case.ours, input, reduction=reduction, backward="inplace"), input

    right = expected(case, reduction=reduction)
    for results in backwards_in_any_order(loss_of):
        (error,) = (x for x in results if isinstance(x, RuntimeError))
        assert "second time" in str(error)
        (gradient,) = (x for x in results if isinstance(x, torch.Tensor))
        torch.testing.assert_close(gradient, right)


@pytest.mark.parametrize("backward", ("fused", "recompute"))
def test_linear_heads(backward):
    weight, labels = torch.randn(5, 3), torch.tensor([0, -100, 4, 2])
    x = torch.randn(4, 3)

    def loss_of():
        input = x.clone().requires_grad_()
        return L.linear_cross_entropy(input, weight, labels, backward=backward), input

    loss, input = loss_of()
    (right,) = torch.autograd.grad(loss, input)
    for first, second in backwards_in_any_order(loss_of):
        assert first.data_ptr() != second.data_ptr()
        torch.testing.assert_close(first, right)
        torch.testing.assert_close(second, right)

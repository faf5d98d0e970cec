"""Linear heads of nothing, and of infinities: what torch's composition of a layer and a loss gives."""

from __future__ import annotations

import itertools

import pytest
import torch
from kit.linear_head import chunked, composed

import fused_losses.functional as L

N, D, V = 6, 5, 7
LOSSES = ("cross_entropy", "binary_cross_entropy_with_logits", "mse_loss", "kl_div")


def operands(rows=N, features=D, classes=V):
    generator = torch.Generator().manual_seed(0)
    shapes = (rows, features), (classes, features), (classes,)
    return [torch.randn(shape, generator=generator) for shape in shapes]


def outcome(function, head, **keywords):
    """The loss and the gradients of the head; what is raised, by its type."""
    head = [operand.clone().requires_grad_() for operand in head]
    try:
        loss = function(*head, **keywords)
        return [loss.detach(), *torch.autograd.grad(loss, head, torch.ones_like(loss))]
    except (RuntimeError, ValueError, IndexError) as error:
        return type(error)


def assert_same(name, head, target, **keywords):
    mine, theirs = (outcome(f(name), head, target=target, **keywords) for f in (chunked, composed))
    if isinstance(theirs, type):
        assert mine is theirs
    else:
        torch.testing.assert_close(mine, theirs, equal_nan=True)


@pytest.mark.parametrize("rows, features, classes", ((0, D, V), (N, 0, V), (N, D, 0), (0, 0, V), (0, D, 0)))
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.filterwarnings("ignore:linear ", "ignore:reduction")
def test_nothing(name, rows, features, classes):
    head = operands(rows, features, classes)
    targets = [torch.rand(rows, classes)]
    if name == "cross_entropy":
        targets += [torch.zeros(rows, dtype=torch.int64), torch.full((rows,), -100)]
    for target, reduction in itertools.product(targets, ("mean", "sum", "none")):
        assert_same(name, head, target, reduction=reduction)


@pytest.mark.filterwarnings("ignore:linear ")
def test_nothing_with_terms():
    for sizes in ((0, D, V), (N, 0, V)):
        head, target = operands(*sizes), torch.zeros(sizes[0], dtype=torch.int64)
        mine = outcome(chunked("cross_entropy"), head, target=target, z_loss=0.1)
        theirs = outcome(composed("", L.cross_entropy), head, target=target, z_loss=0.1)
        torch.testing.assert_close(mine, theirs, equal_nan=True)


@pytest.mark.parametrize("value", (torch.inf, -torch.inf, torch.nan), ids=str)
@pytest.mark.parametrize("place", ("input", "weight", "class", "bias"))
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.filterwarnings("ignore:linear ", "ignore:reduction")
def test_infinities(name, place, value):
    head = operands()
    x, weight, bias = head
    if place == "input":
        x[1, 2] = value
    elif place == "bias":
        bias[3] = value
    else:
        weight[(1, 2) if place == "weight" else 1] = value
    targets = [torch.rand(N, V).softmax(1)]
    if name == "cross_entropy":
        targets += [torch.arange(N)]
    for target, reduction in itertools.product(targets, ("mean", "sum", "none")):
        assert_same(name, head, target, reduction=reduction)


@pytest.mark.parametrize("workspace", ("a", True, 1.5, 0, -1, 2**80))
def test_workspaces_that_are_none(workspace):
    x, head = torch.randn(3, 4), torch.randn(5, 4)
    error = ValueError if type(workspace) is int else TypeError
    with pytest.raises(error, match="workspace must be"):
        L.linear_cross_entropy(x, head, torch.tensor([0, 1, 2]), workspace=workspace)
    with pytest.raises(error, match="workspace must be"):
        L.linear_loss(x, head, torch.randn(3, 5), "mse_loss", workspace=workspace)


def test_a_head_on_another_device():
    x, head = torch.randn(3, 4), torch.randn(5, 4, device="meta")
    for call in (
        lambda: L.linear_cross_entropy(x, head, torch.tensor([0, 1, 2])),
        lambda: L.linear_loss(x, head, torch.randn(3, 5), "mse_loss"),
    ):
        with pytest.raises(RuntimeError, match="is not on the expected device"):
            call()

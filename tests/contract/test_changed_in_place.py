"""What users write to operands between a loss and its backward never makes a gradient silently wrong."""

from __future__ import annotations

import pytest
import torch
from kit.contract import LABELS, call, case_of, each_loss, expected

import fused_losses.functional as L
from fused_losses.registry import LOSSES

pytestmark = [
    pytest.mark.cpu,  # about tensors as they are, which are moved elsewhere
    pytest.mark.filterwarnings("ignore:reduction", "ignore:There is a performance drop"),
]

CHANGED = "modified by an inplace operation"
"""How autograd's own error begins."""

OPERANDS = [(name, k) for name in LOSSES for k in range(len(case_of(name).operands))]


def loss_of(case, changed, **options):
    """The leaf that the input is made of, the loss, and a function that zeroes the operand of that number."""
    leaf = case.operands[0].clone().requires_grad_()
    operands = [leaf * 1, *(x.clone() for x in case.operands[1:])]
    loss = case.ours(*operands, **case.options | options)

    def change():
        with torch.no_grad():
            operands[changed].zero_()

    return leaf, loss, change


@pytest.mark.parametrize("upstream", (None, 1.0, 0.5, 0.3))
@pytest.mark.parametrize("name, changed", OPERANDS)
def test_a_stored_gradient_does_not_read_operands_again(name, changed, upstream):
    case = case_of(name)
    leaf, loss, change = loss_of(case, changed)
    change()
    (gradient,) = torch.autograd.grad(loss if upstream in (None, 1.0) else loss * upstream, leaf)
    torch.testing.assert_close(gradient, expected(case, upstream or 1.0))


def test_logits_that_became_probabilities_for_a_metric():
    """Torch keeps log-probabilities instead of logits, so such programs work with torch's loss."""
    gradients = []
    for function in (torch.nn.functional.cross_entropy, L.cross_entropy):
        leaf = torch.linspace(-2, 2, 56).view(8, 7).requires_grad_()
        logits = leaf * 1
        loss = function(logits, LABELS) / 4
        with torch.no_grad():
            torch.softmax(logits, 1, out=logits)
        loss.backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)


@each_loss
def test_a_changed_operand_costs_a_rounding_an_unchanged_one_does_not(name):
    case = case_of(name, torch.bfloat16)
    (stored,) = torch.autograd.grad(*loss_of(case, 0)[1::-1])
    leaf, loss, change = loss_of(case, 0)
    change()
    upstream = torch.tensor(0.3, dtype=loss.dtype)
    (gradient,) = torch.autograd.grad(loss, leaf, upstream)
    assert torch.equal(gradient, (stored.float() * upstream.float()).bfloat16())


@each_loss
@pytest.mark.parametrize("backward", ("fused", "recompute"))
def test_where_nothing_is_stored_autograd_s_error_is_raised(name, backward):
    case = case_of(name)
    for changed in range(len(case.operands)):
        leaf, loss, change = loss_of(case, changed, backward=backward)
        if backward == "fused":
            torch.autograd.grad(loss, leaf, retain_graph=True)
        change()
        with pytest.raises(RuntimeError, match=CHANGED):
            torch.autograd.grad(loss, leaf)


@each_loss
def test_a_gradient_of_a_gradient_needs_the_operands(name):
    leaf, loss, change = loss_of(case_of(name), 0)
    change()
    with pytest.raises(RuntimeError, match=CHANGED):
        torch.autograd.grad(loss, leaf, create_graph=True)


def test_a_gradient_of_log_sum_exps_needs_the_logits():
    logits = torch.randn(8, 7, requires_grad=True) * 1
    loss, lse, *_ = L.cross_entropy(logits, LABELS, return_lse=True)
    logits.detach().zero_()
    with pytest.raises(RuntimeError, match=CHANGED):
        (loss + lse.sum()).backward()


def test_gradients_of_operands_that_broadcast():
    x, t, v = torch.randn(8, 7), torch.randn(7), torch.rand(8, 1) + 0.5
    results = []
    for function in (torch.nn.functional.gaussian_nll_loss, L.gaussian_nll_loss):
        leaves = [operand.clone().requires_grad_() for operand in (x, t, v)]
        operands = [leaf * 1 for leaf in leaves]
        loss = function(operands[0], operands[1].expand(8, 7), operands[2])
        if function is L.gaussian_nll_loss:
            operands[0].detach().zero_()
        results.append(torch.autograd.grad(loss * 0.3, leaves))
    torch.testing.assert_close(*results)


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_gradients_of_a_target_that_broadcasts():
    x, t = torch.randn(8, 7), torch.randn(7)
    results = []
    for function in (torch.nn.functional.l1_loss, L.l1_loss):
        leaves = [operand.clone().requires_grad_() for operand in (x, t)]
        operands = [leaf * 1 for leaf in leaves]
        loss = function(*operands)
        operands[0].detach().zero_()
        results.append(torch.autograd.grad(loss * 0.3, leaves))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("name, changed", OPERANDS)
def test_inplace_keeps_the_input_alone(name, changed):
    """The input holds the gradient, so a change of it destroys that; the others are not needed any more."""
    case = case_of(name)
    for upstream in (1.0, 0.5):
        leaf, loss, change = loss_of(case, changed, backward="inplace")
        change()
        if changed == 0:
            with pytest.raises(RuntimeError, match=CHANGED):
                torch.autograd.grad(loss, leaf, torch.full_like(loss, upstream))
        else:
            (gradient,) = torch.autograd.grad(loss, leaf, torch.full_like(loss, upstream))
            torch.testing.assert_close(gradient, expected(case, upstream))


def test_a_second_loss_in_place_of_the_first_one_s_gradient():
    logits = torch.randn(8, 7, requires_grad=True) * 1
    first, second = (L.cross_entropy(logits, LABELS, backward="inplace") for _ in range(2))
    with pytest.raises(RuntimeError, match=CHANGED):
        torch.autograd.grad(first, logits)
    torch.autograd.grad(second, logits)


@each_loss
def test_inplace_of_losses_that_are_not_reduced_keeps_all(name):
    case = case_of(name)
    for changed in range(len(case.operands)):
        leaf, loss, change = loss_of(case, changed, backward="inplace", reduction="none")
        change()
        with pytest.raises(RuntimeError, match=CHANGED):
            torch.autograd.grad(loss.sum(), leaf)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
def test_a_normalizer_may_count_on(dtype):
    """Its value at the loss is what gradients are divided by, whenever they are computed."""
    leaf = torch.randn(8, 7, requires_grad=True)
    items = torch.tensor(5.0, dtype=dtype)
    results = []
    for count in (5.0, items):
        loss = L.cross_entropy(leaf, LABELS, normalizer=count, backward="recompute")
        if count is items:
            items += 7
        results.append(torch.autograd.grad(loss, leaf)[0])
    assert torch.equal(*results)


@each_loss
def test_a_gradient_is_the_same_whoever_has_looked_at_the_operands(name):
    """Reading operands, and writing to copies of them, changes nothing."""
    case = case_of(name, torch.bfloat16)
    leaf, loss, _ = loss_of(case, 0)
    input = case.operands[0].clone().requires_grad_()
    other = call(case, case.ours, input, backward="recompute")
    upstream = torch.tensor(0.3, dtype=loss.dtype)
    mine, again = torch.autograd.grad(loss, leaf, upstream), torch.autograd.grad(other, input, upstream)
    assert torch.equal(mine[0], again[0])

"""When gradients are computed, and what a second backward gives: DESIGN.md's contract."""

from __future__ import annotations

import functools

import pytest
import torch
from kit.contract import LABELS, ONCE, call, case_of, each_loss, each_reduction, expected
from kit.device import there

import fused_losses.functional as L
from fused_losses.registry import LOSSES

G = torch.Generator().manual_seed(0)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:reduction", "ignore:There is a performance drop"),
]
# Tests marked `cpu` are about tensors as they are, which are moved elsewhere; test_gpu.py has the like.


@each_loss
@pytest.mark.parametrize("backward", ("fused", "recompute"))
def test_every_backward_of_a_retained_graph_is_exact(name, backward):
    case = case_of(name)
    input = case.operands[0].clone().requires_grad_()
    loss = call(case, case.ours, input, backward=backward)
    gradients = [
        torch.autograd.grad(loss, input, torch.tensor(u, dtype=loss.dtype), retain_graph=True)[0]
        for u in (1.0, 0.3, 1.0, -2.0)
    ]
    # Compared at the end: a gradient that was handed out must not change under its owner.
    for u, gradient in zip((1.0, 0.3, 1.0, -2.0), gradients, strict=True):
        torch.testing.assert_close(gradient, expected(case, u))
    assert len({g.data_ptr() for g in gradients}) == len(gradients)


@each_loss
def test_first_upstream_other_than_one_then_one(name):
    case = case_of(name)
    input = case.operands[0].clone().requires_grad_()
    loss = call(case, case.ours, input)
    first, second = (
        torch.autograd.grad(loss, input, torch.tensor(u, dtype=loss.dtype), retain_graph=True)[0]
        for u in (65536.0, 1.0)
    )
    torch.testing.assert_close(first, expected(case, 65536.0))
    torch.testing.assert_close(second, expected(case))


@each_loss
def test_low_precision_gradient_is_rounded_once(name):
    """Scaling the stored bfloat16 gradient would round it twice."""
    case = case_of(name, torch.bfloat16)
    input = case.operands[0].clone().requires_grad_()
    loss = call(case, case.ours, input)
    (gradient,) = torch.autograd.grad(loss, input, torch.tensor(0.3, dtype=loss.dtype))
    exact = expected(case.cast(torch.float64), torch.tensor(0.3, dtype=torch.bfloat16).double())
    error = (gradient.double() - exact).abs()
    # Half an ulp of bfloat16 (at most 2^-8 of the value) and float32's own rounding on the way.
    assert (error <= exact.abs() * (2**-8 + 2**-20) + 1e-7).all()


@each_loss
@each_reduction
@pytest.mark.cpu
def test_inplace(name, reduction):
    case = case_of(name)
    for upstream in (1.0, 0.3):
        logits = case.operands[0].clone().requires_grad_() * 1
        memory = logits.data_ptr()
        loss = call(case, case.ours, logits, reduction=reduction, backward="inplace")
        torch.testing.assert_close(loss, call(case, case.torchs, reduction=reduction))
        (gradient,) = torch.autograd.grad(loss, logits, torch.full_like(loss, upstream), retain_graph=True)
        assert gradient.data_ptr() == memory
        torch.testing.assert_close(gradient, expected(case, upstream, reduction=reduction))
        with pytest.raises(RuntimeError):
            torch.autograd.grad(loss, logits, torch.full_like(loss, upstream))


@each_loss
def test_inplace_in_half_waits_for_the_upstream_gradient(name):
    """1/N and a loss scale of 65536 must meet before anything is rounded to float16."""
    case = case_of(name, torch.float16)
    logits = case.operands[0].clone().requires_grad_() * 1
    loss = call(case, case.ours, logits, backward="inplace")
    (gradient,) = torch.autograd.grad(loss.float(), logits, torch.tensor(1024.0))
    torch.testing.assert_close(
        gradient.double(), expected(case.cast(torch.float64), 1024.0), rtol=2**-10, atol=1e-7
    )


@pytest.mark.cpu
def test_inplace_makes_other_users_of_the_logits_raise():
    logits = torch.randn(4, 7, requires_grad=True) * 1
    square = logits.square()
    loss = L.cross_entropy(logits, LABELS[:4], backward="inplace")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (loss + square.sum()).backward()


@pytest.mark.cpu
def test_inplace_refuses_leaves_and_views_of_leaves_and_overlapping_memory():
    leaf = torch.randn(4, 7, requires_grad=True)
    view_that_is_a_leaf = torch.randn(2, 4, 7)[0].requires_grad_()
    for input in (leaf, leaf.view(4, 7), leaf[:, :], view_that_is_a_leaf):
        with pytest.raises(RuntimeError, match="leaf"):
            L.cross_entropy(input, LABELS[:4], backward="inplace")
    with pytest.raises(RuntimeError, match="dense"):
        L.mse_loss((leaf * 1)[:, :1].expand(4, 7), torch.zeros(4, 7), backward="inplace")
    with pytest.raises(RuntimeError, match="broadcast"):
        L.mse_loss((leaf * 1)[:1], torch.zeros(4, 7), backward="inplace")


@pytest.mark.cpu
def test_inplace_without_gradients_leaves_the_input_alone():
    logits = torch.randn(4, 7)
    before = logits.clone()
    L.cross_entropy(logits, LABELS[:4], backward="inplace")
    with torch.no_grad():
        L.cross_entropy(logits.requires_grad_(), LABELS[:4], backward="inplace")
    assert torch.equal(logits, before)


@pytest.mark.parametrize("reduction", ("mean", "none"))
@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.differentiable > 1])
def test_inplace_with_gradients_of_the_others(name, reduction):
    """They read the input before its gradient overwrites it."""
    case = case_of(name)
    if name == "cross_entropy":
        case.operands = (case.operands[0], torch.rand(8, 7, generator=G, dtype=torch.float64).softmax(1))
    results = []
    for function, options in ((case.ours, {"backward": "inplace"}), (case.torchs, {})):
        leaves = case.sample()[0]
        wanted = [x for x in leaves if x.requires_grad]
        assert len(wanted) > 1
        loss = call(case, function, leaves[0] * 1, *leaves[1:], reduction=reduction, **options).sum()
        results.append(torch.autograd.grad(loss, wanted))
    torch.testing.assert_close(*results)


def test_probabilities_inplace_with_gradients_of_both():
    x = torch.randn(5, 2100, dtype=torch.float64, generator=G)
    t = torch.rand(5, 2100, dtype=torch.float64, generator=G).softmax(1)
    for layout in (lambda a: a, lambda a: a.t().contiguous().t()):
        logits, target = layout(x).clone().requires_grad_() * 1, layout(t).clone().requires_grad_()
        loss = there(L.cross_entropy)(logits, target, label_smoothing=0.1, backward="inplace")
        gradients = torch.autograd.grad(loss, [logits, target])
        x1, t1 = x.clone().requires_grad_(), t.clone().requires_grad_()
        theirs = torch.autograd.grad(torch.nn.functional.cross_entropy(x1, t1, label_smoothing=0.1), [x1, t1])
        torch.testing.assert_close(gradients, theirs)


@each_loss
@each_reduction
@pytest.mark.parametrize("backward", ("fused", "recompute"))
def test_create_graph(name, reduction, backward):
    case = case_of(name)

    def second_derivative(loss, **options):
        input = case.operands[0].clone().requires_grad_()
        value = call(case, loss, input, reduction=reduction, **options).square().sum()
        (gradient,) = torch.autograd.grad(value, input, create_graph=True)
        return gradient, torch.autograd.grad(gradient.square().sum(), input)[0]

    if name in ONCE:
        input = case.operands[0].clone().requires_grad_()
        ours = functools.partial(call, case, case.ours, reduction=reduction, backward=backward)
        assert torch.autograd.gradcheck(ours, input) and torch.autograd.gradgradcheck(ours, input)
    else:
        mine = second_derivative(case.ours, backward=backward)
        torch.testing.assert_close(mine, second_derivative(case.torchs))


@pytest.mark.cpu
def test_create_graph_after_inplace_raises():
    logits = torch.randn(4, 7, requires_grad=True) * 1
    loss = L.cross_entropy(logits, LABELS[:4], backward="inplace")
    with pytest.raises(RuntimeError, match="differentiated again"):
        torch.autograd.grad(loss, logits, create_graph=True)


@each_loss
@pytest.mark.cpu
def test_transforms(name):
    case = case_of(name)
    x, direction = case.operands[0], torch.full_like(case.operands[0], 0.01)
    stacked = torch.stack([x, x * 0.5])

    def tangent(function):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, direction)
            return torch.autograd.forward_ad.unpack_dual(function(dual)).tangent

    transforms = [
        lambda function: torch.func.grad(function)(x),
        lambda function: torch.func.vmap(torch.func.grad(function))(stacked),
    ]
    if name not in ONCE:
        transforms += [lambda function: torch.func.jvp(function, (x,), (direction,)), tangent]
    for transform in transforms:
        results = [transform(functools.partial(call, case, loss)) for loss in (case.ours, case.torchs)]
        torch.testing.assert_close(*results)


@each_loss
def test_only_what_is_needed_is_computed(name):
    case = case_of(name)
    with torch.no_grad():
        assert call(case, case.ours, case.operands[0].clone().requires_grad_()).grad_fn is None
    assert call(case, case.ours).grad_fn is None
    for i, x in enumerate(case.sample()[0]):
        if x.requires_grad:
            results = []
            for function in (case.ours, case.torchs):
                operands = [x.detach() for x in case.operands]
                operands[i].requires_grad_()
                results.append(torch.autograd.grad(call(case, function, *operands), operands[i]))
            torch.testing.assert_close(*results)


@pytest.mark.parametrize("name", ("hinge_embedding_loss", "cosine_embedding_loss"))
@pytest.mark.cpu
def test_targets_that_are_only_looked_at_have_no_gradient(name):
    case = case_of(name)
    *_, target = case.operands
    target = target.clone().requires_grad_()
    for function in (case.ours, case.torchs):
        operands = (*case.operands[:-1], target)
        input = operands[0].clone().requires_grad_()
        call(case, function, input, *operands[1:]).backward()
        assert input.grad is not None and target.grad is None


@each_loss
def test_upstream_gradients_of_any_layout_and_dtype(name):
    case = case_of(name, torch.bfloat16)
    wide = case.cast(torch.float64)
    shape = call(case, case.torchs, reduction="none").shape
    full = torch.rand(shape, generator=G, dtype=torch.float64)
    transposed = full.t().contiguous().t() if full.dim() == 2 else full
    for upstream in (torch.ones(1).bfloat16().expand(shape), full.bfloat16(), transposed.bfloat16()):
        input = case.operands[0].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(call(case, case.ours, input, reduction="none"), input, upstream)
        exact = expected(wide, upstream.double(), reduction="none")
        torch.testing.assert_close(gradient.double(), exact, rtol=2**-8, atol=1e-6)

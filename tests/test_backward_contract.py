"""When gradients are computed, what a second backward gives, and who else may look: DESIGN.md's contract."""

from __future__ import annotations

import pytest
import torch
from cases import Case
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import fused_losses.functional as L

G = torch.Generator().manual_seed(0)
LABELS = torch.tensor([3, 0, -100, 6, 2, 1, 5, 4])


def _case(name: str, dtype: torch.dtype = torch.float64) -> Case:
    x = torch.randn(8, 7, generator=G, dtype=torch.float64)
    t = torch.rand(8, 7, generator=G, dtype=torch.float64)
    if name == "nll_loss":
        return Case(name, name, x.log_softmax(1), LABELS).cast(dtype)
    if name == "binary_cross_entropy":
        return Case(name, name, x.sigmoid(), t).cast(dtype)
    return Case(name, name, x, LABELS if name == "cross_entropy" else t).cast(dtype)


LOSSES = (
    "cross_entropy",
    "nll_loss",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "mse_loss",
    "l1_loss",
)
each_loss = pytest.mark.parametrize("name", LOSSES)
each_reduction = pytest.mark.parametrize("reduction", ("mean", "sum", "none"))


def expected(case: Case, upstream: Tensor | float = 1.0, **options) -> Tensor:
    input = case.input.detach().requires_grad_()
    loss = case.torchs(input, case.target, **options)
    return torch.autograd.grad(loss, input, torch.as_tensor(upstream, dtype=loss.dtype).expand_as(loss))[0]


@each_loss
@pytest.mark.parametrize("backward", ("fused", "recompute"))
def test_every_backward_of_a_retained_graph_is_exact(name, backward):
    case = _case(name)
    input = case.input.clone().requires_grad_()
    loss = case.ours(input, case.target, backward=backward)
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
    case = _case(name)
    input = case.input.clone().requires_grad_()
    loss = case.ours(input, case.target)
    first, second = (
        torch.autograd.grad(loss, input, torch.tensor(u, dtype=loss.dtype), retain_graph=True)[0]
        for u in (65536.0, 1.0)
    )
    torch.testing.assert_close(first, expected(case, 65536.0))
    torch.testing.assert_close(second, expected(case))


@each_loss
def test_low_precision_gradient_is_rounded_once(name):
    """Scaling the stored bfloat16 gradient would round it twice."""
    case = _case(name, torch.bfloat16)
    input = case.input.clone().requires_grad_()
    loss = case.ours(input, case.target)
    (gradient,) = torch.autograd.grad(loss, input, torch.tensor(0.3, dtype=loss.dtype))
    exact = expected(case.cast(torch.float64), torch.tensor(0.3, dtype=torch.bfloat16).double())
    error = (gradient.double() - exact).abs()
    # Half an ulp of bfloat16 (at most 2^-8 of the value) and float32's own rounding on the way.
    assert (error <= exact.abs() * (2**-8 + 2**-20) + 1e-7).all()


@each_loss
@each_reduction
def test_inplace(name, reduction):
    case = _case(name)
    for upstream in (1.0, 0.3):
        logits = case.input.clone().requires_grad_() * 1
        memory = logits.data_ptr()
        loss = case.ours(logits, case.target, reduction=reduction, backward="inplace")
        torch.testing.assert_close(loss, case.torchs(case.input, case.target, reduction=reduction))
        (gradient,) = torch.autograd.grad(loss, logits, torch.full_like(loss, upstream), retain_graph=True)
        assert gradient.data_ptr() == memory
        torch.testing.assert_close(gradient, expected(case, upstream, reduction=reduction))
        with pytest.raises(RuntimeError):
            torch.autograd.grad(loss, logits, torch.full_like(loss, upstream))


@each_loss
def test_inplace_in_half_waits_for_the_upstream_gradient(name):
    """1/N and a loss scale of 65536 must meet before anything is rounded to float16."""
    case = _case(name, torch.float16)
    logits = case.input.clone().requires_grad_() * 1
    loss = case.ours(logits, case.target, backward="inplace")
    (gradient,) = torch.autograd.grad(loss.float(), logits, torch.tensor(1024.0))
    torch.testing.assert_close(
        gradient.double(), expected(case.cast(torch.float64), 1024.0), rtol=2**-10, atol=1e-7
    )


def test_inplace_makes_other_users_of_the_logits_raise():
    logits = torch.randn(4, 7, requires_grad=True) * 1
    square = logits.square()
    loss = L.cross_entropy(logits, LABELS[:4], backward="inplace")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (loss + square.sum()).backward()


def test_inplace_refuses_leaves_and_views_of_leaves_and_overlapping_memory():
    leaf = torch.randn(4, 7, requires_grad=True)
    for input in (leaf, leaf.view(4, 7), leaf[:, :]):
        with pytest.raises(RuntimeError, match="leaf"):
            L.cross_entropy(input, LABELS[:4], backward="inplace")
    with pytest.raises(RuntimeError, match="dense"):
        L.mse_loss((leaf * 1)[:, :1].expand(4, 7), torch.zeros(4, 7), backward="inplace")
    with pytest.raises(RuntimeError, match="broadcast"):
        L.mse_loss((leaf * 1)[:1], torch.zeros(4, 7), backward="inplace")


def test_inplace_without_gradients_leaves_the_input_alone():
    logits = torch.randn(4, 7)
    before = logits.clone()
    L.cross_entropy(logits, LABELS[:4], backward="inplace")
    with torch.no_grad():
        L.cross_entropy(logits.requires_grad_(), LABELS[:4], backward="inplace")
    assert torch.equal(logits, before)


def test_inplace_with_gradients_of_the_target():
    for reduction in ("mean", "none"):
        case = _case("binary_cross_entropy_with_logits")
        logits, target = case.input.clone().requires_grad_() * 1, case.target.clone().requires_grad_()
        loss = case.ours(logits, target, reduction=reduction, backward="inplace").sum()
        gradients = torch.autograd.grad(loss, [logits, target])
        x, t = case.input.requires_grad_(), case.target.requires_grad_()
        theirs = torch.autograd.grad(case.torchs(x, t, reduction=reduction).sum(), [x, t])
        torch.testing.assert_close(gradients, theirs)


def test_probabilities_inplace_with_gradients_of_both():
    x = torch.randn(5, 2100, dtype=torch.float64, generator=G)
    t = torch.rand(5, 2100, dtype=torch.float64, generator=G).softmax(1)
    for layout in (lambda a: a, lambda a: a.t().contiguous().t()):
        logits, target = layout(x).clone().requires_grad_() * 1, layout(t).clone().requires_grad_()
        loss = L.cross_entropy(logits, target, label_smoothing=0.1, backward="inplace")
        gradients = torch.autograd.grad(loss, [logits, target])
        x1, t1 = x.clone().requires_grad_(), t.clone().requires_grad_()
        theirs = torch.autograd.grad(torch.nn.functional.cross_entropy(x1, t1, label_smoothing=0.1), [x1, t1])
        torch.testing.assert_close(gradients, theirs)


@each_loss
@each_reduction
@pytest.mark.parametrize("backward", ("fused", "recompute"))
def test_create_graph(name, reduction, backward):
    case = _case(name)

    def second_derivative(loss, **options):
        input = case.input.clone().requires_grad_()
        value = loss(input, case.target, reduction=reduction, **options).square().sum()
        (gradient,) = torch.autograd.grad(value, input, create_graph=True)
        return gradient, torch.autograd.grad(gradient.square().sum(), input)[0]

    torch.testing.assert_close(
        second_derivative(case.ours, backward=backward), second_derivative(case.torchs)
    )


def test_create_graph_after_inplace_raises():
    logits = torch.randn(4, 7, requires_grad=True) * 1
    loss = L.cross_entropy(logits, LABELS[:4], backward="inplace")
    with pytest.raises(RuntimeError, match="differentiated again"):
        torch.autograd.grad(loss, logits, create_graph=True)


@each_loss
def test_transforms(name):
    case = _case(name)

    def of(loss):
        return lambda x: loss(x, case.target)

    x, direction = case.input, torch.full_like(case.input, 0.01)
    torch.testing.assert_close(torch.func.grad(of(case.ours))(x), torch.func.grad(of(case.torchs))(x))
    torch.testing.assert_close(
        torch.func.jvp(of(case.ours), (x,), (direction,)), torch.func.jvp(of(case.torchs), (x,), (direction,))
    )
    stacked = torch.stack([x, x * 0.5])
    torch.testing.assert_close(
        torch.func.vmap(torch.func.grad(of(case.ours)))(stacked),
        torch.func.vmap(torch.func.grad(of(case.torchs)))(stacked),
    )
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, direction)
        tangents = [
            torch.autograd.forward_ad.unpack_dual(of(f)(dual)).tangent for f in (case.ours, case.torchs)
        ]
    torch.testing.assert_close(*tangents)


@pytest.fixture
def fresh_compiler():
    """Each test's graphs count towards the compiler's limit of recompilations by themselves."""
    torch._dynamo.reset()


@each_loss
@each_reduction
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_without_breaks(name, reduction):
    case = _case(name, torch.float32)
    compiled = torch.compile(lambda x, t: case.ours(x * 1, t, reduction=reduction).sum(), fullgraph=True)
    eager = case.input.clone().requires_grad_()
    case.ours(eager * 1, case.target, reduction=reduction, backward="recompute").sum().backward()
    traced = case.input.clone().requires_grad_()
    compiled(traced, case.target).backward()
    assert torch.equal(eager.grad, traced.grad)


@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_with_changing_sizes_and_ignored_rows():
    compiled = torch.compile(lambda x, t: L.cross_entropy(x, t), fullgraph=True, dynamic=True)
    for rows, classes in ((4, 10), (7, 33), (2, 2000)):
        x = torch.randn(rows, classes, requires_grad=True)
        t = torch.randint(0, classes, (rows,))
        t[0] = -100
        loss = compiled(x, t)
        loss.backward()
        same = x.detach().clone().requires_grad_()
        L.cross_entropy(same, t, backward="recompute").backward()  # what compiled graphs run
        assert torch.equal(x.grad, same.grad)


@each_loss
def test_checkpointed(name):
    case = _case(name)
    for backward in ("fused", "recompute"):
        input = case.input.clone().requires_grad_()
        checkpoint(
            lambda x, mode=backward: case.ours(x * 1, case.target, backward=mode), input, use_reentrant=False
        ).backward()
        torch.testing.assert_close(input.grad, expected(case))


@each_loss
def test_saved_tensor_hooks_see_all_that_is_kept(name):
    case = _case(name)
    packed = []

    def pack(tensor: Tensor) -> int:
        packed.append(tensor.clone())
        return len(packed) - 1

    input = case.input.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda index: packed[index]):
        loss = case.ours(input, case.target)
    assert loss.grad_fn.gradients is None
    loss.backward()
    torch.testing.assert_close(input.grad, expected(case))


@each_loss
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_autocast_returns_float32_and_reads_the_input_as_it_is(name, dtype):
    case = _case(name, dtype)
    input = case.input.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = case.ours(input, case.target)
        theirs = case.torchs(case.input, case.target)
    assert loss.dtype == theirs.dtype == torch.float32
    torch.testing.assert_close(loss, theirs)
    loss.backward()
    assert input.grad.dtype == dtype


@each_loss
def test_only_what_is_needed_is_computed(name):
    case = _case(name)
    with torch.no_grad():
        assert case.ours(case.input.clone().requires_grad_(), case.target).grad_fn is None
    assert case.ours(case.input, case.target).grad_fn is None
    if case.target.is_floating_point():
        target = case.target.clone().requires_grad_()
        case.ours(case.input, target).backward()
        x, t = case.input, case.target.clone().requires_grad_()
        case.torchs(x, t).backward()
        torch.testing.assert_close(target.grad, t.grad)


@each_loss
def test_upstream_gradients_of_any_layout_and_dtype(name):
    case = _case(name, torch.bfloat16)
    shape = case.torchs(case.input, case.target, reduction="none").shape
    full = torch.rand(shape, generator=G, dtype=torch.float64)
    transposed = full.t().contiguous().t() if full.dim() == 2 else full
    for upstream in (torch.ones(1).bfloat16().expand(shape), full.bfloat16(), transposed.bfloat16()):
        input = case.input.clone().requires_grad_()
        loss = case.ours(input, case.target, reduction="none")
        (gradient,) = torch.autograd.grad(loss, input, upstream)
        wide = case.cast(torch.float64)
        reference = wide.input.clone().requires_grad_()
        (theirs,) = torch.autograd.grad(
            wide.torchs(reference, wide.target, reduction="none"), reference, upstream.double()
        )
        torch.testing.assert_close(gradient.double(), theirs, rtol=2**-8, atol=1e-6)

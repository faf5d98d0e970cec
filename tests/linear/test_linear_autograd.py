"""Losses over a linear head under autograd: retained graphs, transforms, compilers, autocast."""

from __future__ import annotations

import warnings

import pytest
import torch
from kit.linear_head import LABELS, PROBABILITIES, V, chunked, composed, head, results, with_torchs_own

import fused_losses.functional as L


def test_only_gradients_that_are_needed():
    for wanted in range(8):
        operands = [x.detach().requires_grad_(bool(wanted >> i & 1)) for i, x in enumerate(head())]
        mine, theirs = (f("cross_entropy")(*operands, target=LABELS) for f in (chunked, composed))
        assert mine.requires_grad == bool(wanted)
        if wanted:
            of = [x for x in operands if x.requires_grad]
            torch.testing.assert_close(torch.autograd.grad(mine, of), torch.autograd.grad(theirs, of))


def test_a_target_that_requires_grad():
    operands, target = head(), PROBABILITIES.clone().requires_grad_()
    of = [*operands, target]
    mine, theirs = (
        torch.autograd.grad(f("cross_entropy")(*operands, target=target), of) for f in (chunked, composed)
    )
    torch.testing.assert_close(mine, theirs)


def test_ignored_rows_may_hold_anything():
    x, weight, bias = head()
    broken = x.detach().clone()
    broken[5:20] = torch.nan
    mine = chunked("cross_entropy")(broken.requires_grad_(), weight, bias, target=LABELS)
    mine.backward()
    whole = chunked("cross_entropy")(x, weight, bias, target=LABELS)
    assert torch.equal(mine, whole)
    assert torch.equal(broken.grad, torch.autograd.grad(whole, x)[0])


@pytest.mark.parametrize("strategy", ("fused", "recompute"))
def test_a_retained_graph(strategy):
    operands = head()
    loss = chunked("cross_entropy", backward=strategy)(*operands, target=LABELS)
    first = torch.autograd.grad(loss, operands, retain_graph=True)
    kept = [x.clone() for x in first]
    second = torch.autograd.grad(2 * loss, operands)
    for one, other, copy in zip(first, second, kept, strict=True):
        assert torch.equal(one, copy)
        torch.testing.assert_close(other, 2 * one)


@pytest.mark.parametrize("changed", range(4))
def test_operands_that_are_changed_after_the_loss(changed):
    """Stored gradients do not read them again; where there are none, autograd raises its error."""

    def loss_of(strategy):
        leaves = head()
        operands = [*(x * 1 for x in leaves), LABELS.clone()]
        loss = chunked("cross_entropy", backward=strategy)(*operands[:3], target=operands[3]) * 0.5
        with torch.no_grad():
            operands[changed].zero_()
        return loss, leaves

    right = head()
    right = torch.autograd.grad(chunked("cross_entropy")(*right, target=LABELS) * 0.5, right)
    loss, leaves = loss_of("fused")
    for mine, exact in zip(torch.autograd.grad(loss, leaves, retain_graph=True), right, strict=True):
        assert torch.equal(mine, exact)
    for again, operands in ((loss, leaves), loss_of("recompute")):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(again, operands)


def test_double_backward_and_transforms():
    operands = [
        x.detach()[: 6 if x.dim() == 1 else None].double().requires_grad_() for x in head(classes=(6,))
    ]
    operands[0] = operands[0].detach()[:9].requires_grad_()
    target = LABELS[:9] % 6

    def mine(*operands):
        return chunked("cross_entropy")(*operands, target=target)

    assert torch.autograd.gradcheck(mine, operands)
    assert torch.autograd.gradgradcheck(mine, operands)
    theirs = composed("cross_entropy")(*operands, target=target)
    expected = torch.autograd.grad(theirs, operands)
    torch.testing.assert_close(torch.func.grad(mine, (0, 1, 2))(*operands), expected)
    _, tangent = torch.func.jvp(mine, tuple(operands), tuple(torch.ones_like(x) for x in operands))
    torch.testing.assert_close(tangent, sum(x.sum() for x in expected))
    rows = torch.func.vmap(lambda x: L.linear_cross_entropy(x, operands[1], target, linear_bias=operands[2]))
    stacked = torch.stack([operands[0], operands[0] * 2])
    torch.testing.assert_close(rows(stacked)[0], theirs)


@pytest.mark.parametrize("dynamic", (False, True))
def test_compiled(dynamic):
    torch._dynamo.reset()
    operands = head()

    def step(*operands):
        losses = (
            L.linear_cross_entropy(*operands[:2], LABELS, linear_bias=operands[2], label_smoothing=0.1),
            L.linear_loss(*operands[:2], PROBABILITIES, "kl_div", reduction="batchmean"),
            L.linear_loss(*operands[:2], PROBABILITIES, "binary_cross_entropy_with_logits"),
            L.linear_cross_entropy(*operands[:2], LABELS, reduction="none").sum(),
        )
        return sum(2 * loss for loss in losses)

    expected = results(step, operands, torch.ones_like)
    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic)
    for mine, theirs in zip(results(compiled, operands, torch.ones_like), expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_compiled_with_all_logits():
    """The warning that there are no chunks would break the graph."""
    torch._dynamo.reset()
    x, weight, _ = head()
    teacher = PROBABILITIES.clone().requires_grad_()
    compiled = torch.compile(L.linear_cross_entropy, fullgraph=True, backend="aot_eager")
    expected = L.linear_cross_entropy(x, weight, teacher)
    torch.testing.assert_close(compiled(x, weight, teacher, workspace=4 * V), expected)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_16_bits_are_compiled_as_a_whole(dtype, cpu_products):
    """On a CPU, the logits' dtype depends on the instructions that it has."""
    torch._dynamo.reset()
    operands = head(dtype)

    def step(*operands):
        return L.linear_cross_entropy(*operands[:2], LABELS, linear_bias=operands[2]).float()

    expected = results(step, operands, torch.ones_like)
    compiled = torch.compile(step, fullgraph=True)
    for mine, theirs in zip(results(compiled, operands, torch.ones_like), expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_autocast(cpu_products):
    operands = head()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mine, theirs = (f("cross_entropy")(*operands, target=LABELS) for f in (chunked, composed))
        low = chunked("cross_entropy")(operands[0].bfloat16(), *operands[1:], target=LABELS)
    assert mine.dtype is theirs.dtype is low.dtype is torch.float32
    for loss in (mine, low):
        torch.testing.assert_close(loss, theirs, rtol=2**-7, atol=0)
        for one, other in zip(
            torch.autograd.grad(loss, operands), torch.autograd.grad(theirs, operands), strict=False
        ):
            torch.testing.assert_close(one, other, rtol=0, atol=2**-6 * float(other.abs().max()))
            assert one.dtype is torch.float32
        theirs = composed("cross_entropy")(*operands, target=LABELS)


def test_checkpointed():
    operands = head()
    loss = torch.utils.checkpoint.checkpoint(
        lambda *operands: chunked("cross_entropy")(*operands, target=LABELS), *operands, use_reentrant=False
    )
    expected = torch.autograd.grad(composed("cross_entropy")(*operands, target=LABELS), operands)
    torch.testing.assert_close(torch.autograd.grad(loss, operands), expected)


def test_whoever_asks_for_chunks_is_told_that_there_are_none():
    """All logits are made under torch.func, and where the target requires grad."""
    x, weight, bias = (operand.detach() for operand in head())
    teacher = PROBABILITIES.clone().requires_grad_()
    asked = [{"workspace": 4 * V}]
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):  # torch 2.11 has none
        asked.append({"options": torch.nn.LinearCrossEntropyOptions(batch_chunk_size=3)})
    for more in asked:
        (name,) = more
        for why, call in {
            "torch.func": lambda more=more: torch.func.grad(
                lambda x: L.linear_cross_entropy(x, weight, LABELS, linear_bias=bias, **more)
            )(x),
            "an operand besides the head requires grad": lambda more=more: L.linear_cross_entropy(
                x, weight, teacher, **more
            ),
        }.items():
            with pytest.warns(
                UserWarning, match=f"``{name}`` ignored; all logits are in memory, since {why}"
            ) as caught:
                call()
            assert {warning.filename for warning in caught if warning.category is UserWarning} == {__file__}
    for call in (
        lambda: L.linear_loss(x, weight, teacher, "kl_div", workspace=4 * V, reduction="sum"),
        lambda: L.linear_loss(x, weight, PROBABILITIES, "kl_div", workspace=4 * V, reduction="none"),
        lambda: L.linear_loss(x[:0], weight, PROBABILITIES[:0], "mse_loss", workspace=4 * V),
        lambda: L.linear_cross_entropy(x[:0], weight, LABELS[:0], z_loss=0.1, workspace=4 * V),
        lambda: torch.func.jvp(
            lambda x: L.linear_loss(x, weight, PROBABILITIES, "mse_loss", workspace=4 * V), (x,), (x,)
        ),
    ):
        with pytest.warns(UserWarning, match="``workspace`` ignored") as caught:
            call()
        assert {warning.filename for warning in caught if warning.category is UserWarning} == {__file__}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.func.grad(lambda x: L.linear_cross_entropy(x, weight, LABELS))(x)
        L.linear_cross_entropy(x, weight, LABELS, workspace=4 * V)


@with_torchs_own
def test_what_kernels_do_not_take_keeps_torchs_options():
    """Torch's function has chunks of its own: of a weight of another dtype than the input, for one."""
    x, weight, _ = (operand.detach() for operand in head(torch.bfloat16))
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=3, acc_dtype=torch.float32)
    heard = []

    class Log(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            heard.append(str(function))
            return function(*arguments, **(keywords or {}))

    with Log():
        L.linear_cross_entropy(x, weight, LABELS, weight=torch.ones(V), options=options)
    assert any("chunked" in name for name in heard)

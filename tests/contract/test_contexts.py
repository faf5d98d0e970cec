"""What a user asks for holds in the thread or task that asked: strictness, `explain`, the backend."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from contextlib import nullcontext

import pytest
import torch

import fused_losses
from fused_losses import backends, devices, modes
from fused_losses import functional as L

pytestmark = pytest.mark.cpu

X, T = torch.randn(5), torch.randn(5)


def in_thread(function):
    """What a function returns in a thread of its own, whose context is a new one."""
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join(60)
    (result,) = results
    return result


def test_explain_hears_its_own_thread():
    def loss(x, t):
        in_thread(lambda: L.l1_loss(x, t))
        return L.mse_loss(x, t)

    (line,) = fused_losses.explain(loss, X, T).splitlines()
    assert line.startswith("mse_loss")


def test_explain_within_explain():
    inner = []

    def loss(x, t):
        L.mse_loss(x, t)
        inner.append(fused_losses.explain(L.l1_loss, x, t))
        return L.huber_loss(x, t)

    outer = fused_losses.explain(loss, X, T).splitlines()
    assert [line.split(":")[0] for line in outer] == ["mse_loss", "huber_loss"]
    assert inner[0].startswith("l1_loss") and "\n" not in inner[0]


@pytest.mark.parametrize(
    "dtype, reduction, requires_grad, is_hooked, backward, said",
    (
        (torch.float32, "mean", True, False, "fused", "fused, as asked for"),
        (
            torch.float32,
            "none",
            True,
            False,
            "fused",
            "recompute, because each loss has an upstream gradient",
        ),
        (torch.float16, "mean", True, False, "fused", "recompute, because in float16"),
        (torch.float32, "mean", True, True, "fused", "recompute, because hooks are to see"),
        (torch.float16, "none", True, False, "inplace", "late, because each loss has an upstream"),
        (torch.float16, "mean", True, False, "inplace", "late, because in float16"),
        (torch.float32, "mean", False, False, "inplace", "fused, because the input requires no grad"),
        (torch.float16, "none", True, False, "recompute", "recompute, as asked for"),
    ),
)
def test_explain_says_why_a_strategy_is_not_the_one_asked_for(
    dtype, reduction, requires_grad, is_hooked, backward, said
):
    x, t = X.to(dtype).requires_grad_(requires_grad), T.to(dtype).requires_grad_()
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x) if is_hooked else nullcontext()
    with hooks:
        line = fused_losses.explain(L.mse_loss, x, t, reduction=reduction, backward=backward)
    assert said in line


def test_explain_of_a_target_made_in_inference_mode():
    with torch.inference_mode():
        target = T.clone()
    x = X.clone().requires_grad_()
    with modes.explained() as lines:
        L.l1_loss(x, target).backward()
    assert torch.equal(x.grad, (x.detach() - target).sign() / 5)
    assert "because autograd saves nothing for kernels that was made in inference mode" in lines[-1]


def test_explain_after_an_error():
    with pytest.raises(ValueError, match="backward"):
        fused_losses.explain(L.mse_loss, X, T, backward="no such")
    assert modes.decisions.get() is None and modes.hear() is None


def test_strictness_is_of_a_thread():
    token = modes.strict.set(True)
    try:
        with pytest.raises(RuntimeError, match="FUSED_LOSSES_STRICT"):
            L.l1_loss(X, T.to(torch.complex64))
        assert in_thread(lambda: L.l1_loss(X, T.to(torch.complex64))) >= 0
    finally:
        modes.strict.reset(token)


@pytest.fixture
def triton_on_cpu(monkeypatch):
    """Stands for Triton's kernels: of one operator, which returns a number that no compiled kernel does."""

    def register(choose):
        library = torch.library.Library("fused_losses", "IMPL", "CPU")
        stand_in = choose("mse_loss", "CPU", lambda *_: [torch.tensor(-1.0)])
        library.impl("mse_loss", stand_in, with_keyset=True, allow_override=True)
        return library

    monkeypatch.setattr(backends, "has_triton", lambda: True)
    monkeypatch.setattr(backends, "_register_triton", lambda: register(backends._where_preferred))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(modes, "PREFERRED", "compiled")
    token = modes.backend.set("compiled")
    backends._register_or_remove_triton()
    yield
    modes.backend.reset(token)
    monkeypatch.undo()
    backends._register_or_remove_triton()


def mse():
    return L.mse_loss(X, T).item()


def test_a_backend_is_of_a_thread(triton_on_cpu):
    expected = mse()
    assert expected >= 0
    with fused_losses.backend("triton"):
        assert mse() == -1
        assert devices.kernels_for("cpu") == "Triton, interpreted"
        context = contextvars.Context()
        context.run(modes.backend.set, "compiled")
        assert in_thread(lambda: context.run(mse)) == expected
        with fused_losses.backend("compiled"):
            assert mse() == expected
        assert mse() == -1
    assert mse() == expected
    assert backends._triton_library is None


def test_tasks_do_not_mix(triton_on_cpu):
    expected = mse()
    entered = asyncio.Event()

    async def by_triton():
        with fused_losses.backend("triton"):
            entered.set()
            await asyncio.sleep(0.01)
            return mse()

    async def by_default():
        await entered.wait()
        return mse()

    async def both():
        return await asyncio.gather(by_triton(), by_default())

    assert asyncio.run(both()) == [-1, expected]


def test_a_backend_of_several_threads_stays_until_the_last_one_leaves(triton_on_cpu):
    first, second = fused_losses.backend("triton"), fused_losses.backend("triton")
    first.__enter__()
    in_thread(lambda: (second.__enter__(), second.__exit__(None, None, None)))
    assert mse() == -1
    first.__exit__(None, None, None)
    assert mse() >= 0


def test_an_interrupted_switch_is_undone(triton_on_cpu, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(backends, "_register_triton", interrupted)
        with pytest.raises(KeyboardInterrupt), fused_losses.backend("triton"):
            pass
    assert modes.backend.get() == "compiled" and backends._who_prefer_triton == 0
    assert mse() >= 0 and backends._triton_library is None


def test_a_backward_prefers_what_its_forward_did(triton_on_cpu, monkeypatch):
    """Also on a thread of its own, as those on which autograd computes on GPUs."""
    x = X.clone().requires_grad_()
    with fused_losses.backend("triton"):
        loss = L.l1_loss(x, T, backward="recompute")
    seen = []
    prefer = modes.prefer
    monkeypatch.setattr(modes, "prefer", lambda name: seen.append(name) or prefer(name))
    in_thread(lambda: torch.autograd.backward(loss))
    assert seen == ["triton"]
    assert torch.equal(x.grad, (x.detach() - T).sign() / 5)

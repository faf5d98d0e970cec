"""What only a GPU shows: graphs, streams, waiting, memory, assertions. Run by `make test-gpu`."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from cases import inputs_of

import fused_losses.functional as L
from fused_losses import backends
from fused_losses.registry import LOSSES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.filterwarnings("ignore:reduction"),
]
each_loss = pytest.mark.parametrize("name", LOSSES)

SHAPES = {"elements": (64, 1000), "classes": (64, 1000), "labels": (64, 1000), "vectors": (64, 100)}


def operands_of(name, dtype=torch.float32, device="cuda"):
    """On the device; the first one requires grad and is no leaf, as logits."""
    tensors = [
        x.to(device, dtype if x.is_floating_point() else x.dtype)
        for x in inputs_of(name, *SHAPES[LOSSES[name].shapes])
    ]
    return tensors[0].requires_grad_(), *tensors[1:]


def step(name, input, *others, upstream=None, **options):
    loss = getattr(L, name)(input * 1, *others, **LOSSES[name].call, **options)
    return loss.detach(), torch.autograd.grad(loss, input, upstream)[0]


@pytest.fixture(autouse=True)
def by_kernels_only(monkeypatch):
    monkeypatch.setattr("fused_losses.dispatch.strict", True)


@pytest.fixture
def no_waiting():
    """Whoever waits for the GPU raises."""
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


def test_kernels_serve_the_gpu():
    wanted = os.environ.get("FUSED_LOSSES_BACKEND")
    assert backends.devices["cuda"].startswith("Triton" if wanted == "triton" else ("CUDA", "Triton"))


@each_loss
@pytest.mark.parametrize("backward", ("fused", "recompute", "inplace"))
def test_nothing_waits_for_the_gpu(name, backward, no_waiting):
    upstream = torch.full((), 0.5, device="cuda")
    for reduction in ("mean", "sum"):
        operands = operands_of(name)
        step(name, *operands, reduction=reduction, backward=backward)
        step(name, *operands, reduction=reduction, backward=backward, upstream=upstream)


@each_loss
@pytest.mark.parametrize("backward", ("fused", "inplace"))
def test_in_a_graph(name, backward):
    input, *others = operands_of(name)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what is compiled or allocated once, before the capture
        for _ in range(3):
            step(name, input, *others, backward=backward)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step(name, input, *others, backward=backward)
    for factor in (1.0, 0.5):
        with torch.no_grad():
            input.mul_(factor)
        graph.replay()
        graph.replay()
        torch.testing.assert_close(results, step(name, input, *others), rtol=0, atol=0)


@each_loss
def test_on_another_stream_and_device(name):
    expected = step(name, *operands_of(name))
    with torch.cuda.stream(torch.cuda.Stream()):
        results = step(name, *operands_of(name))
    torch.cuda.synchronize()
    torch.testing.assert_close(results, expected, rtol=0, atol=0)
    if torch.cuda.device_count() > 1:
        elsewhere = step(name, *operands_of(name, device="cuda:1"))
        torch.testing.assert_close([x.cpu() for x in elsewhere], [x.cpu() for x in expected], rtol=0, atol=0)


@each_loss
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_every_run_gives_the_same_bits(name, dtype):
    operands = operands_of(name, dtype)
    first, *others = (step(name, *operands) for _ in range(5))
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=0)


@each_loss
@pytest.mark.parametrize("reduction", ("mean", "none"))
def test_in_place(name, reduction):
    input, *others = operands_of(name)
    logits = input * 1
    loss = getattr(L, name)(logits, *others, **LOSSES[name].call, reduction=reduction, backward="inplace")
    (gradient,) = torch.autograd.grad(loss, logits, torch.ones_like(loss))
    assert gradient.data_ptr() == logits.data_ptr()
    upstream = torch.ones_like(loss)
    torch.testing.assert_close(
        gradient, step(name, input, *others, reduction=reduction, upstream=upstream)[1]
    )


@each_loss
def test_compiled(name):
    torch.compiler.reset()
    operands = operands_of(name)
    compiled = torch.compile(step, fullgraph=False)
    torch.testing.assert_close(compiled(name, *operands), step(name, *operands))


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float32), ids=str)
def test_memory_of_a_step(dtype):
    """One gradient, or none; and two numbers for each row."""
    logits = torch.randn(256, 32768, device="cuda", dtype=dtype, requires_grad=True)
    labels = torch.randint(32768, (256,), device="cuda")
    for backward, gradients in (("fused", 1), ("inplace", 0)):
        for measured in (False, True):  # the first step allocates what stays
            given = logits * 1
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            loss = L.cross_entropy(given, labels, backward=backward)
            torch.autograd.grad(loss, given)
            extra = torch.cuda.max_memory_allocated() - before
            if measured:
                assert extra <= gradients * given.nbytes + (64 << 10)
            del given, loss


@pytest.mark.parametrize("name", ("cross_entropy", "nll_loss", "multi_margin_loss"))
def test_a_label_out_of_bounds_fails_an_assertion(name):
    """In another process: an assertion ends all work on the GPU."""
    code = (
        "import torch, fused_losses.functional as L\n"
        f"L.{name}(torch.zeros(4, 7, device='cuda'), torch.tensor([0, 1, 7, 2], device='cuda'))\n"
        "torch.cuda.synchronize()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode and "out of bounds" in done.stderr + done.stdout, done.stderr

"""What only a GPU shows: streams, threads, waiting, sizes, devices, assertions. Run by `make test-gpu`."""

from __future__ import annotations

import fcntl
import gc
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from kit.on_gpu import HEADS, bits_agree, head_step, operands_of, step

import fused_losses.functional as L
from fused_losses import devices
from fused_losses.registry import LOSSES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("by_kernels_only"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.filterwarnings("ignore:reduction"),
]
each_loss = pytest.mark.parametrize("name", LOSSES)


@contextmanager
def no_waiting():
    """Whoever waits for the GPU raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_kernels_serve_the_gpu():
    wanted = os.environ.get("FUSED_LOSSES_BACKEND")
    assert devices.kernels_for("cuda").startswith("Triton" if wanted == "triton" else ("CUDA", "Triton"))


@each_loss
@pytest.mark.parametrize("backward", ("fused", "recompute", "inplace"))
def test_nothing_waits_for_the_gpu(name, backward):
    upstream, operands = torch.full((), 0.5, device="cuda"), operands_of(name)
    with no_waiting():
        for reduction in ("mean", "sum"):
            step(name, *operands, reduction=reduction, backward=backward)
            step(name, *operands, reduction=reduction, backward=backward, upstream=upstream)


@pytest.mark.parametrize("normalizer", (21.0, 21, torch.tensor(21.0)), ids=("float", "int", "tensor"))
def test_a_normalizer_does_not_wait_for_the_gpu(normalizer):
    """Be it a number, or a tensor that is not where the logits are."""
    operands = operands_of("cross_entropy")
    with no_waiting():
        results = step("cross_entropy", *operands, normalizer=normalizer)
    total = step("cross_entropy", *operands, reduction="sum")
    torch.testing.assert_close(results, tuple(x / 21 for x in total))


@pytest.mark.parametrize("loss", HEADS)
def test_heads_do_not_wait_for_the_gpu(loss):
    operands = HEADS[loss]()
    with no_waiting():
        head_step(loss, *operands)


@pytest.mark.parametrize("loss", HEADS)
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_heads_of_16_bits(loss, dtype):
    """Products of 16 bits that a GPU adds up in float32, against float64."""
    operands = HEADS[loss](dtype=dtype)
    wide = [x.detach().double().requires_grad_() if x.is_floating_point() else x for x in operands]
    for mine, exact in zip(head_step(loss, *operands), head_step(loss, *wide), strict=True):
        # Logits, and their gradients before the products, are rounded to 16 bits, and so is the result.
        largest = float(exact.abs().max())
        atol = 3 * torch.finfo(dtype).eps * largest
        torch.testing.assert_close(mine.double(), exact, rtol=0, atol=atol)


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


STREAMS = 4
"""At a time, and so many threads."""


@each_loss
def test_several_streams_at_once(name):
    """Each has its own count of programs that have arrived."""
    operands = operands_of(name)
    expected = step(name, *operands)
    streams = [torch.cuda.Stream() for _ in range(STREAMS)]
    torch.cuda.synchronize()
    results = []
    for _ in range(20):
        for stream in streams:
            with torch.cuda.stream(stream):
                results.append(step(name, *operands))
    torch.cuda.synchronize()
    bits_agree(expected, *results)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_threads_on_rows_of_different_lengths(dtype):
    """Kernels that hold rows in shared memory, and ask for more of it than usual, each for its own rows."""
    generator = torch.Generator("cuda").manual_seed(0)
    lengths = [60_000, 140_000, 90_000, 20_000]

    def work(length):
        logits = torch.randn(8, length, device="cuda", dtype=dtype, generator=generator)
        labels = torch.arange(8, device="cuda")
        return logits.requires_grad_(), labels

    operands = [work(length) for length in lengths]
    expected = [step("cross_entropy", *x) for x in operands]
    torch.cuda.synchronize()

    def run(k):
        with torch.cuda.stream(torch.cuda.Stream()):
            results = [step("cross_entropy", *operands[k]) for _ in range(50)]
        torch.cuda.synchronize()
        return results

    with ThreadPoolExecutor(STREAMS) as threads:
        for one, results in zip(expected, threads.map(run, range(len(lengths))), strict=True):
            bits_agree(one, *results)


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
    options = {**LOSSES[name].call, "reduction": reduction}
    loss = getattr(L, name)(logits, *others, **options, backward="inplace")
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
    torch.cuda.empty_cache()  # a block that is there already is counted whole, though it may be larger
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


BEYOND_32_BITS = 2**31 + 2**15
"""Elements: 4 GiB of 16 bits."""


@pytest.fixture
def gigabytes(tmp_path_factory):
    """Room for six tensors of so many elements, for one test at a time, and given back after it."""
    # The folder that the processes of a run share.
    with (tmp_path_factory.getbasetemp().parent / "gigabytes").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        torch.cuda.empty_cache()
        if torch.cuda.mem_get_info()[0] < 6 * 2 * BEYOND_32_BITS:
            pytest.skip("the GPU has not enough memory")
        yield
        gc.collect()
        torch.cuda.empty_cache()


@pytest.mark.parametrize("shape", ((BEYOND_32_BITS // 2**15, 2**15), (2, BEYOND_32_BITS // 2)), ids=str)
def test_more_than_2_to_the_31_logits(shape, gigabytes):
    """Rows at both ends have the gradient that they have among few."""
    generator = torch.Generator("cuda").manual_seed(0)
    logits = torch.empty(shape, device="cuda", dtype=torch.bfloat16).normal_(generator=generator)
    labels = torch.arange(shape[0], device="cuda") % shape[1]
    losses, gradient = step("cross_entropy", logits.requires_grad_(), labels, reduction="sum")
    each = L.cross_entropy(logits.detach(), labels, reduction="none")
    torch.testing.assert_close(losses.double(), each.double().sum(), rtol=2**-7, atol=0)
    for rows in (slice(0, 1), slice(-1, None)):
        of_few = logits.detach()[rows].clone().requires_grad_()
        loss, expected = step("cross_entropy", of_few, labels[rows], reduction="sum")
        torch.testing.assert_close(each[rows].sum(), loss)
        torch.testing.assert_close(gradient[rows], expected)


def test_more_than_2_to_the_31_elements(gigabytes):
    input = torch.ones(BEYOND_32_BITS, device="cuda", dtype=torch.bfloat16)
    target = torch.zeros_like(input)
    loss, gradient = step("mse_loss", input.requires_grad_(), target)
    assert loss == 1
    assert (gradient == 2 / BEYOND_32_BITS * torch.ones_like(gradient[0])).all()


@each_loss
def test_operands_that_are_changed_after_the_loss(name):
    """The stored gradient is multiplied, on the GPU and without waiting for it."""
    operands = operands_of(name)
    _, right = step(name, *operands)
    upstream = torch.full((), 0.3, device="cuda")
    for changed in range(len(operands)):
        copies = [operands[0] * 1, *(x.clone() for x in operands[1:])]
        loss = getattr(L, name)(*copies, **LOSSES[name].call)
        with torch.no_grad(), no_waiting():
            copies[changed].zero_()
        with no_waiting():
            (gradient,) = torch.autograd.grad(loss, operands[0], upstream)
        torch.testing.assert_close(gradient, right * 0.3)


@each_loss
def test_operands_on_different_devices_raise(name):
    """As from torch: what a kernel would read elsewhere is no memory of its own."""
    operands = operands_of(name)
    for k in range(1, len(operands)):
        mixed = [x.cpu() if i == k else x for i, x in enumerate(operands)]
        with pytest.raises(RuntimeError, match="same device"):
            step(name, *mixed)
    with pytest.raises(RuntimeError, match="same device"):
        torch.ops.fused_losses.scale_(operands[0].detach(), torch.ones(()))


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

"""How much memory a step takes, and what becomes of it."""

from __future__ import annotations

import gc

import pytest
import torch

import fused_losses
import fused_losses.functional as L
from fused_losses.bench import memory
from fused_losses.bench.cases import Case

MIB = 2**20
LOGITS = (256, 32768)
CASE = Case(loss="cross_entropy", size="large", shape=LOGITS, dtype="float32")
LOGITS_BYTES = 4 * LOGITS[0] * LOGITS[1]


@pytest.mark.skipif(not memory.available(), reason="only Linux tells a process its peak memory")
@pytest.mark.parametrize(
    ("provider", "least", "most"),
    [
        ("eager", 2 * LOGITS_BYTES, 4 * LOGITS_BYTES),
        # The gradient, in whole pages of 2 MiB; row statistics and stacks are far below one more.
        ("fused", LOGITS_BYTES - 2 * MIB, LOGITS_BYTES + 2 * MIB),
        ("inplace", 0, MIB),
    ],
)
def test_peak_of_a_cross_entropy_step(provider, least, most):
    peak = memory.peak_bytes(CASE, provider, threads=torch.get_num_threads())
    print(f"{provider}: {peak / MIB:.1f} MiB on top of {LOGITS_BYTES / MIB:.1f} MiB of logits")
    assert least <= peak <= most


@pytest.fixture
def empty_pool():
    gc.collect()
    fused_losses.empty_cache()
    yield
    fused_losses.set_cache_limit(2**30)
    fused_losses.empty_cache()


def gradient_of(elements: int) -> torch.Tensor:
    x = torch.randn(elements, requires_grad=True)
    return torch.autograd.grad(L.mse_loss(x, torch.zeros(elements)), x)[0]


@pytest.mark.usefixtures("empty_pool")
def test_a_freed_gradient_serves_the_next_step():
    first = gradient_of(2**21)
    address = first.data_ptr()
    assert address % (2 * MIB) == 0 and fused_losses.cached_bytes() == 0
    del first
    assert fused_losses.cached_bytes() == 8 * MIB
    second = gradient_of(2**21)
    assert second.data_ptr() == address and fused_losses.cached_bytes() == 0


@pytest.mark.usefixtures("empty_pool")
def test_memory_in_use_is_never_handed_out_twice():
    alive = [gradient_of(2**21) for _ in range(3)]
    copies = [gradient.clone() for gradient in alive]
    gradient_of(2**21)
    assert len({gradient.data_ptr() for gradient in alive}) == 3
    assert all(torch.equal(a, b) for a, b in zip(alive, copies, strict=True))


@pytest.mark.usefixtures("empty_pool")
def test_the_cache_obeys_its_limit():
    fused_losses.set_cache_limit(12 * MIB)
    alive = [gradient_of(2**21) for _ in range(3)]
    del alive
    assert fused_losses.cached_bytes() == 8 * MIB
    fused_losses.set_cache_limit(0)
    assert fused_losses.cached_bytes() == 0
    gradient_of(2**21)
    assert fused_losses.cached_bytes() == 0
    with pytest.raises(ValueError, match="negative"):
        fused_losses.set_cache_limit(-1)


@pytest.mark.usefixtures("empty_pool")
def test_much_larger_buffers_do_not_serve_small_requests():
    gradient_of(2**23)
    held = fused_losses.cached_bytes()
    small = gradient_of(2**21)
    assert fused_losses.cached_bytes() == held
    del small

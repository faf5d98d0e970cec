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
    assert fused_losses.cached_bytes() == 12 * MIB
    fused_losses.set_cache_limit(0)
    assert fused_losses.cached_bytes() == 0
    gradient_of(2**21)
    assert fused_losses.cached_bytes() == 0
    with pytest.raises(ValueError, match="negative"):
        fused_losses.set_cache_limit(-1)


@pytest.mark.usefixtures("empty_pool")
def test_requests_are_cut_from_larger_buffers():
    """What is left of a buffer serves the next request, and both are one buffer when they are free again."""
    first = gradient_of(2**23)
    address = first.data_ptr()
    del first
    parts = [gradient_of(2**21) for _ in range(4)]
    assert sorted(part.data_ptr() - address for part in parts) == [0, 8 * MIB, 16 * MIB, 24 * MIB]
    assert fused_losses.cached_bytes() == 0
    for index in (1, 3, 0, 2):
        parts[index] = None
    assert fused_losses.cached_bytes() == 32 * MIB
    assert gradient_of(2**23).data_ptr() == address


@pytest.mark.usefixtures("empty_pool")
def test_buffers_in_use_and_held_are_never_more_than_were_in_use_at_a_time():
    generator = torch.Generator().manual_seed(0)
    most = 0
    for elements in torch.randint(2**20, 2**23, (25,), generator=generator).tolist():
        gradient = gradient_of(elements)
        in_use = -(-gradient.nbytes // (2 * MIB)) * 2 * MIB
        most = max(most, in_use)
        assert in_use + fused_losses.cached_bytes() <= most
        del gradient
        assert fused_losses.cached_bytes() <= most


@pytest.mark.usefixtures("empty_pool")
def test_buffers_that_are_not_asked_for_go_back():
    """What 32 allocations have not needed. All large gradients of a step are needed by each step."""
    gradient_of(2**24)
    for _ in range(32):
        gradient_of(2**20)
    assert fused_losses.cached_bytes() == 4 * MIB
    step = []
    for _ in range(5):
        step += [gradient_of(2**20) for _ in range(16)]
        assert fused_losses.cached_bytes() == 0
        step.clear()
        assert fused_losses.cached_bytes() == 64 * MIB


@pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
@pytest.mark.usefixtures("empty_pool")
@pytest.mark.parametrize("elements", (2**18, 2**21))
def test_without_a_pool_gradients_of_any_size_can_be_resized(elements):
    fused_losses.set_cache_limit(0)
    gradient = gradient_of(elements)
    assert torch.add(torch.ones(2 * elements), 1, out=gradient).numel() == 2 * elements
    gradient.untyped_storage().resize_(0)
    assert gradient.untyped_storage().nbytes() == 0


@pytest.mark.usefixtures("empty_pool")
def test_gradients_from_the_pool_refuse_to_be_resized():
    gradient = gradient_of(2**21)
    with pytest.raises(RuntimeError, match="not resizable"):
        gradient.untyped_storage().resize_(0)
    assert gradient.untyped_storage().nbytes() == 8 * MIB


@pytest.mark.usefixtures("empty_pool")
def test_gradients_that_processes_share_leave_the_pool():
    """Torch copies them to shared memory, and what they had is free."""
    gradient = gradient_of(2**21)
    copy = gradient.clone()
    gradient.share_memory_()
    assert fused_losses.cached_bytes() == 8 * MIB
    gradient_of(2**21)
    assert torch.equal(gradient, copy)

"""What Triton's operators do around a launch: which device is current, and whose memory programs share."""

from __future__ import annotations

import threading
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

from fused_losses import triton_kernels
from fused_losses.triton_kernels import reduce
from fused_losses.triton_kernels.operators import on_their_device

GPU = torch.device("cuda", 1)


@pytest.fixture
def count_of(monkeypatch):
    """count_of(stream): the count of arrivals on a GPU that is not there, and whether this thread made it."""
    makers = {}

    def zeros(*_, **__):
        made = torch.zeros(())
        makers[made] = threading.get_ident()
        return made

    def count_of(stream, capturing=False):
        cuda = SimpleNamespace(
            is_current_stream_capturing=lambda: capturing,
            current_stream=lambda device: stream,
            stream=nullcontext,
        )
        fake = SimpleNamespace(
            cuda=cuda, zeros=zeros, empty=lambda *_, **__: None, int32=torch.int32, float64=torch.float64
        )
        monkeypatch.setattr(reduce, "torch", fake)
        _, count = reduce.scratch(4, GPU)
        return count, makers[count] == threading.get_ident()

    reduce._arrivals.cache_clear()
    yield count_of
    reduce._arrivals.cache_clear()


class Stream:
    device = GPU


def test_a_stream_keeps_its_count_from_outside_a_graphs_pool(count_of):
    """Torch allocates from a graph's pool before it captures, too, but only what the same thread asks for."""
    first, second = Stream(), Stream()
    count, own = count_of(first)
    assert not own
    assert count_of(first)[0] is count
    assert count_of(second)[0] is not count


def test_a_graph_has_counts_of_its_own(count_of):
    stream = Stream()
    kept, _ = count_of(stream)
    counts = [count_of(stream, capturing=True) for _ in range(2)]
    assert all(own and count is not kept for count, own in counts)
    assert counts[0][0] is not counts[1][0]


def test_operators_run_on_their_tensors_device(monkeypatch):
    entered = []

    @contextmanager
    def device_of(tensor):
        entered.append(tensor)
        yield
        entered.remove(tensor)

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    x = torch.ones(3)
    assert on_their_device(lambda *_: len(entered))(1.0, [x], x) == 1
    assert not entered


def test_operators_refuse_tensors_of_several_devices():
    x = torch.ones(2, 3)
    step = triton_kernels._implementations()["mse_loss_backward_"]
    for into, target in ((x, x.to("meta")), (x.to("meta"), x)):
        with pytest.raises(RuntimeError, match="must be on the same device as input"):
            step([into], False, torch.ones(()), x, target, None, None, [], None, None, 1, 1)

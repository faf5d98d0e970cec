"""Losses in CUDA graphs, captured by hand and by torch.compile. Run by `make test-gpu`."""

from __future__ import annotations

import pytest
import torch
from kit.on_gpu import HEADS, bits_agree, head_step, loss_of, operands_of, step

from fused_losses.registry import LOSSES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("by_kernels_only"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.filterwarnings("ignore:reduction"),
]
each_loss = pytest.mark.parametrize("name", LOSSES)


def captured(function, *arguments, **options):
    """A graph of the call, after three calls on a stream of their own, and where its results are."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what is compiled or allocated once, before the capture
        for _ in range(3):
            function(*arguments, **options)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = function(*arguments, **options)
    return graph, results


@each_loss
@pytest.mark.parametrize("backward", ("fused", "inplace"))
def test_in_a_graph(name, backward):
    input, *others = operands_of(name)
    graph, results = captured(step, name, input, *others, backward=backward)
    for factor in (1.0, 0.5):
        with torch.no_grad():
            input.mul_(factor)
        graph.replay()
        graph.replay()
        bits_agree(step(name, input, *others), results)


@pytest.mark.parametrize("loss", HEADS)
def test_a_head_in_a_graph(loss):
    input, *others = HEADS[loss]()
    graph, results = captured(head_step, loss, input, *others)
    for factor in (1.0, 0.5):
        with torch.no_grad():
            input.mul_(factor)
        graph.replay()
        torch.testing.assert_close(results, head_step(loss, input, *others))


@each_loss
def test_graphs_beside_each_other(name):
    """On streams of their own, and beside steps without a graph."""
    operands = operands_of(name)
    expected = step(name, *operands)
    graphs = [captured(step, name, *operands) for _ in range(3)]
    streams = [torch.cuda.Stream() for _ in graphs]
    torch.cuda.synchronize()
    eager = []
    for _ in range(20):
        for (graph, _), stream in zip(graphs, streams, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
        eager.append(step(name, *operands))
    torch.cuda.synchronize()
    bits_agree(expected, *(results for _, results in graphs), *eager)


@each_loss
def test_nothing_stays_in_a_pool(name):
    """What a graph allocates from is used before the capture, too; all of it must be free again then."""
    operands = operands_of(name)
    pool = torch.cuda.MemPool()
    # Of high priority: no other test has left scratch for this stream.
    with torch.cuda.stream(torch.cuda.Stream(priority=-1)), torch.cuda.use_mem_pool(pool):
        results = step(name, *operands)
    torch.cuda.synchronize()
    bits_agree(step(name, *operands), results)
    del results
    segments = pool.snapshot()
    assert segments
    assert not [
        block for segment in segments for block in segment["blocks"] if block["state"] == "active_allocated"
    ]


@each_loss
def test_reduce_overhead(name):
    """torch.compile's own graphs: a first run in their pool, a capture, and replays."""
    torch.compiler.reset()
    input, *others = operands_of(name)
    compiled = torch.compile(loss_of, mode="reduce-overhead")
    for factor in (1.0, 0.5, 1.0, 0.5, 1.0):
        with torch.no_grad():
            input.mul_(factor)
        torch.compiler.cudagraph_mark_step_begin()
        loss = compiled(name, input, *others)
        (gradient,) = torch.autograd.grad(loss, input)
        torch.testing.assert_close((loss.detach(), gradient), step(name, input, *others))

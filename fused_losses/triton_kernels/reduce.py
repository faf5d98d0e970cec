"""The reduced loss: its gradient, and adding up what programs have found, within the same launch."""

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from fused_losses.triton_kernels.formulas.math import scalar

PARTIALS = tl.constexpr(1024)
"""How many programs' sums are added at once: a few for each thread."""


@triton.jit
def upstream_of_reduced(upstream):
    """The gradient of the reduced loss, a pointer without strides, as float64; 1 where there is none."""
    if upstream[0] is not None and upstream[1] is None:
        return tl.load(upstream[0]).to(tl.float64)
    else:
        return scalar(1.0)


@triton.jit
def finish(total, divisor, loss_ptr, partials_ptr, arrived_ptr):
    """The loss: the programs' totals over the divisor, by the program that is the last to arrive.

    Which one that is makes no difference: it adds up all totals, in float64, in the order of programs. It
    leaves the count of arrivals at 0 for the next launch.
    """
    programs = tl.num_programs(0)
    tl.store(partials_ptr + tl.program_id(0), total.to(tl.float64))
    # The barrier and the release make the store above visible to whoever arrives last.
    tl.debug_barrier()
    arrived = tl.atomic_add(arrived_ptr, 1, sem="acq_rel")
    if arrived == programs - 1:
        sums = tl.zeros((PARTIALS,), tl.float64)
        for first in range(0, programs, PARTIALS):
            i = first + tl.arange(0, PARTIALS)
            # Past the first-level cache, which may hold what was there before.
            sums += tl.load(partials_ptr + i, mask=i < programs, other=0.0, cache_modifier=".cg")
        loss = tl.sum(sums) / divisor
        if loss_ptr.dtype.element_ty != tl.float64:
            # By way of float32: no device converts float64 to 16 bits in one step.
            loss = loss.to(tl.float32)
        tl.store(loss_ptr, loss.to(loss_ptr.dtype.element_ty))
        tl.store(arrived_ptr, 0)


@cache
def _arrivals(stream: torch.cuda.Stream) -> Tensor:
    # This thread may be allocating from the pool of a graph that is about to be captured, which must outlive
    # its memory: torch gives other threads memory from elsewhere.
    with ThreadPoolExecutor(1) as elsewhere:
        return elsewhere.submit(_zero, stream).result()


def _zero(stream: torch.cuda.Stream) -> Tensor:
    with torch.cuda.stream(stream):
        return torch.zeros((), dtype=torch.int32, device=stream.device)


def scratch(programs: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Room for the programs' totals, and the count of arrivals, which is 0.

    Launches on one stream follow each other, and share a count for good. A graph may be replayed on any
    stream, beside others: each of its launches has its own. The device is the current one.
    """
    partials = torch.empty(programs, dtype=torch.float64, device=device)
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return partials, torch.zeros((), dtype=torch.int32, device=device)
    return partials, _arrivals(torch.cuda.current_stream(device))

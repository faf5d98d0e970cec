"""The reduced loss: its upstream gradient, and adding up what programs have found, within the same launch.

An engine gives its kernel `reduction_arguments`. The kernel asks for `upstream_of_reduced` first, adds up the
losses of its own tiles, and at last calls `finish`.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fused_losses.triton_kernels.formulas.math import scalar
from fused_losses.triton_kernels.memory import store
from fused_losses.triton_kernels.operators import EngineCall

PARTIALS = tl.constexpr(1024)
"""How many programs' totals are added at once: 8 for each of the 128 threads of the smallest programs. The
2112 such programs that an H100 holds take three steps."""


@triton.jit
def upstream_of_reduced(upstream_ptr):
    """The gradient of the reduced loss, (), as float64; 1 where there is none."""
    if upstream_ptr is None:
        return scalar(1.0)
    else:
        return tl.load(upstream_ptr).to(tl.float64)


@triton.jit
def known_divisor(divisor, divisor_ptr):
    """What the sum of all losses is divided by, as float64: a number, or what only the device knows."""
    if divisor_ptr is None:
        return scalar(divisor)
    else:
        return tl.load(divisor_ptr).to(tl.float64)


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
        store(loss_ptr, tl.sum(sums) / divisor, None)
        tl.store(arrived_ptr, 0)


def reduction_arguments(call: EngineCall, programs: int) -> dict[str, Any]:
    """What every engine's kernel takes for the reduced loss; None for what there is not.

    upstream_ptr: the loss's upstream gradient, (), of any floating dtype.
    loss_ptr: where the loss goes, (), in its dtype.
    partials_ptr, arrived_ptr: see `scratch`.
    """
    reduced = call.reduced_loss
    partials, arrived = (None, None) if reduced is None else scratch(programs, call.input.device)
    return {
        "upstream_ptr": call.reduced_upstream,
        "loss_ptr": reduced,
        "partials_ptr": partials,
        "arrived_ptr": arrived,
    }


def scratch(programs: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Room for the programs' totals, (programs), float64, and the count of arrivals, (), int32, which is 0.

    Launches on one stream follow each other, and share a count for good. A graph may be replayed on any
    stream, beside others: each of its launches has its own. The device is the current one.
    """
    partials = torch.empty(programs, dtype=torch.float64, device=device)
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return partials, torch.zeros((), dtype=torch.int32, device=device)
    return partials, _arrivals(torch.cuda.current_stream(device))


@cache
def _arrivals(stream: torch.cuda.Stream) -> Tensor:
    # This thread may be allocating from the pool of a graph that is about to be captured, which must outlive
    # its memory: torch gives other threads memory from elsewhere.
    with ThreadPoolExecutor(1) as elsewhere:
        return elsewhere.submit(_zero, stream).result()


def _zero(stream: torch.cuda.Stream) -> Tensor:
    with torch.cuda.stream(stream):
        return torch.zeros((), dtype=torch.int32, device=stream.device)

"""The rows of a head's input that count, a chunk at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fused_losses.linear.planning import Plan

WORKSPACE = 128 * 2**20
"""Bytes of logits at a time, if no one says. Of 131072 classes in float32, 256 rows, with which a step takes
1.10 times as long as the products of all rows at once (benchmarks/results/cpu-linear.csv)."""

ENOUGH = 512
"""Rows beyond which a CPU's products gain little: with 8192 and 32768 classes, a step takes 1.11 and
1.07 times as long as the products of all rows at once (benchmarks/results/cpu-linear.csv)."""

ROWS = 64
"""What rows of a chunk are a multiple of: a tile of a matrix product."""


def rows_per_chunk(classes: int, itemsize: int, workspace: int | None, device: torch.device) -> int:
    """How many rows have logits in the workspace, in bytes, at a time."""
    fitting = (WORKSPACE if workspace is None else workspace) // max(1, classes * itemsize)
    if workspace is None and device.type == "cpu":
        fitting = min(fitting, ENOUGH)
    return max(1, fitting // ROWS * ROWS or fitting)


@dataclass(frozen=True)
class Rows:
    """The rows that are computed: all, or those in `kept`.

    On a GPU, those that are ignored are not left out but come last, and `count` says how many others there
    are, once the GPU has told: chunks that begin after them are left out if it has by then.
    """

    total: int
    kept: Tensor | None = None
    count: _Count | None = None

    @staticmethod
    def of(plan: Plan) -> Rows:
        """Those of a loss; whoever is left out has no loss, and a gradient of 0."""
        total = plan.logits.shape[0]
        if not plan.has_labels or plan.target.dim() != 1:
            return Rows(total)
        counts = plan.target != plan.options[0]
        if not counts.is_cuda:
            kept = counts.nonzero().squeeze(1)
            return Rows(kept.shape[0], kept) if kept.shape[0] < total else Rows(total)
        order = counts.argsort(descending=True, stable=True)
        return Rows(total, order, _Count(counts.sum()))

    def chunks(self, size: int) -> Iterator[slice | Tensor]:
        """Some rows at a time: what indexes them."""
        for begin in range(0, self.total, size):
            if self.count is not None and self.count.is_at_most(begin):
                return
            chunk = slice(begin, min(begin + size, self.total))
            yield chunk if self.kept is None else self.kept[chunk]


class _Count:
    """A number that a GPU is asked for, and that no one waits for."""

    def __init__(self, count: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if not torch.cuda.is_current_stream_capturing():
            self._count = torch.empty((), dtype=count.dtype, pin_memory=True)
            self._count.copy_(count, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def is_at_most(self, number: int) -> bool:
        """Whether it is already known to be."""
        return self._event is not None and self._event.query() and int(self._count) <= number


def take(tensor: Tensor, rows: slice | Tensor) -> Tensor:
    """Some rows: a view of them, or a copy where they are not side by side."""
    return tensor[rows] if isinstance(rows, slice) else tensor.index_select(0, rows)


def put(tensor: Tensor, rows: slice | Tensor, values: Tensor) -> None:
    """Into some rows."""
    if isinstance(rows, slice):
        tensor[rows] = values
    else:
        tensor.index_copy_(0, rows, values.to(tensor.dtype))

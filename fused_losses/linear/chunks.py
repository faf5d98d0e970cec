"""The rows of a head's input that count, a chunk at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from fused_losses.call import Call, SoftmaxOptions
from fused_losses.registry import LOSSES

WORKSPACE_BYTES = 128 * 2**20
"""Bytes of logits at a time, unless a user says otherwise. They hold 256 rows of 131072 classes in float32,
with which a step takes 1.10 times as long as with all rows at once (benchmarks/results/cpu-linear.csv)."""

MOST_ROWS_ON_CPU = 512
"""Rows of a chunk beyond which a CPU's products gain little: with 8192 and 32768 classes, a step takes 1.11
and 1.07 times as long as with all rows at once (benchmarks/results/cpu-linear.csv)."""

TILE_ROWS = 64
"""Rows of a chunk are a multiple of this, which is what a tile of a matrix product has."""


def rows_per_chunk(classes: int, itemsize: int, workspace: int | None, device: torch.device) -> int:
    """How many rows have logits in the workspace, in bytes, at a time."""
    fitting = (WORKSPACE_BYTES if workspace is None else workspace) // max(1, classes * itemsize)
    if workspace is None and device.type == "cpu":
        fitting = min(fitting, MOST_ROWS_ON_CPU)
    return max(1, fitting // TILE_ROWS * TILE_ROWS or fitting)


@dataclass(frozen=True)
class Rows:
    """The rows that are computed: all, or those in `kept`.

    On a GPU, ignored rows are not left out, since their number is not known to the CPU, but come last.
    """

    total: int
    kept: Tensor | None = None
    """Indices of rows, int64, in the order in which they are computed."""
    count: _Count | None = None
    """On a GPU, how many rows are not ignored: chunks that begin after these are left out if it is known."""

    @staticmethod
    def that_count(call: Call) -> Rows:
        """The rows of a call that have a loss; the others have a gradient of 0."""
        total, target = call.input.shape[0], call.target
        if not isinstance(call.options, SoftmaxOptions) or target.is_floating_point() or target.dim() != 1:
            return Rows(total)
        counts = target != call.options.ignore_index
        if not counts.is_cuda:
            kept = counts.nonzero().squeeze(1)
            return Rows(kept.shape[0], kept) if kept.shape[0] < total else Rows(total)
        order = counts.argsort(descending=True, stable=True)
        return Rows(total, order, _Count(counts.sum()))

    def chunks(self, size: int) -> Iterator[slice | Tensor]:
        """What indexes the rows of each chunk, of `size` rows at most."""
        for begin in range(0, self.total, size):
            if self.count is not None and self.count.is_at_most(begin):
                return
            chunk = slice(begin, min(begin + size, self.total))
            yield chunk if self.kept is None else self.kept[chunk]


class _Count:
    """A number on a GPU, whose copy to the CPU no one waits for."""

    def __init__(self, count: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if not torch.cuda.is_current_stream_capturing():
            self._count = torch.empty((), dtype=count.dtype, pin_memory=True)
            self._count.copy_(count, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def is_at_most(self, number: int) -> bool:
        """Whether the copy has arrived, and is at most that number."""
        return self._event is not None and self._event.query() and int(self._count) <= number


def operands_of_rows(call: Call, rows: slice | Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Target, weight and extra of some rows of a call.

    An elementwise loss's operand with a single row, or no dimension for rows, is the same for all rows. A
    sparse target becomes dense.
    """
    _, target, weight, extra = call.operands
    by_row = LOSSES[call.name].family in ("softmax", "class_margin")

    if by_row or _has_rows(target):
        target = take(target, rows)
    if weight is not None and _has_rows(weight):
        weight = take(weight, rows)
    if extra is not None and _has_rows(extra):
        extra = take(extra, rows)
    return target, weight, extra


def _has_rows(operand: Tensor) -> bool:
    """Whether each row of the head's input has numbers of its own in an operand of an elementwise loss."""
    return operand.dim() > 1 and operand.shape[0] > 1


def take(tensor: Tensor, rows: slice | Tensor) -> Tensor:
    """Some rows of a tensor, dense: a view of them, or a copy where they are not side by side."""
    if tensor.is_sparse:
        if isinstance(rows, slice):
            begin, end, _ = rows.indices(tensor.shape[0])
            rows = torch.arange(begin, end, device=tensor.device)
        return tensor.index_select(0, rows).to_dense()
    return tensor[rows] if isinstance(rows, slice) else tensor.index_select(0, rows)


def put(tensor: Tensor, rows: slice | Tensor, values: Tensor) -> None:
    """Writes values into some rows of a tensor."""
    if isinstance(rows, slice):
        tensor[rows] = values
    else:
        tensor.index_copy_(0, rows, values.to(tensor.dtype))

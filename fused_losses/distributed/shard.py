"""Which classes a process has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class Shard:
    """The classes [first, first + size) of `classes`, on one process of a group.

    Args:
        first: the first class.
        size: how many.
        classes: how many there are on all processes.
        group: the processes that have them; None for all.

    Example:
        >>> from fused_losses.distributed import Shard
        >>> Shard(first=4, size=4, classes=8)  # of the second of two processes
        Shard(first=4, size=4, classes=8, group=None)
    """

    first: int
    size: int
    classes: int
    group: dist.ProcessGroup | None = None

    @staticmethod
    def of_rank(classes: int, group: dist.ProcessGroup | None = None) -> Shard:
        """This process's shard, as torch.chunk and DTensor cut them: the last may be smaller, or empty."""
        rank, count = dist.get_rank(group), dist.get_world_size(group)
        each = -(-classes // count)
        first = min(rank * each, classes)
        return Shard(first, min(each, classes - first), classes, group)

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes, which all have as many, in the order of ranks: (P, *rows.shape)."""
        count = dist.get_world_size(self.group)
        parts = rows.new_empty((count * rows.shape[0], *rows.shape[1:]))
        # As torch calls it from 2.14 on.
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        gather(parts, rows.contiguous(), group=self.group)
        return parts.view(count, *rows.shape)

    def sum(self, tensor: Tensor) -> Tensor:
        """Adds up a tensor over all processes, in place."""
        dist.all_reduce(tensor, group=self.group)
        return tensor


def localized(
    tensor: Tensor, dim: int, shard: Shard | None, group: dist.ProcessGroup | None
) -> tuple[Tensor, Shard]:
    """The local part of a tensor, whose dimension `dim` are classes, and which part that is.

    Raises:
        ValueError: a DTensor that is not sharded along that dimension, and there alone; a part of another
            size.
    """
    if isinstance(tensor, DTensor):
        shard = _shard_of(tensor, dim)
        tensor = tensor.to_local()
    elif shard is None:
        size = torch.tensor([tensor.shape[dim]], device=tensor.device)
        sizes = Shard(0, 1, 1, group).gather(size).flatten().tolist()
        rank = dist.get_rank(group)
        shard = Shard(sum(sizes[:rank]), sizes[rank], sum(sizes), group)
    if tensor.shape[dim] != shard.size:
        raise ValueError(f"there are {tensor.shape[dim]} classes here, but the shard has {shard.size}")
    return tensor, shard


def _shard_of(tensor: DTensor, dim: int) -> Shard:
    """The shard of a DTensor whose dimension `dim` are classes.

    Raises:
        ValueError: it is not sharded along that dimension, and there alone.
    """
    dim %= tensor.dim()
    sharded = [i for i, placement in enumerate(tensor.placements) if not placement.is_replicate()]
    if len(sharded) != 1 or not tensor.placements[sharded[0]].is_shard(dim):
        raise ValueError(f"expected a DTensor that is sharded along classes alone, not {tensor.placements}")
    group: Any = tensor.device_mesh.get_group(sharded[0])
    return Shard.of_rank(tensor.shape[dim], group)


def whole(tensor: Tensor) -> Tensor:
    """The plain tensor of a DTensor, which is gathered if need be; others are plain already."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

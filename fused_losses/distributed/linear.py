"""Vocab-parallel cross-entropy of a linear head, without its logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from fused_losses.autograd import take_gradients
from fused_losses.distributed.results import Rows, build_output, reduce_losses, slopes
from fused_losses.distributed.rows import Merged, local_numbers, merge, write_gradient
from fused_losses.distributed.shard import Shard, localized, whole
from fused_losses.distributed.target import Options, Target
from fused_losses.linear.chunks import rows_per_chunk
from fused_losses.linear.counted import Counted, scaled
from fused_losses.linear.head import Head
from fused_losses.linear.loop import over_chunks
from fused_losses.linear.products import choose_logits_dtype
from fused_losses.losses.softmax_outputs import Requested, divisor_of
from fused_losses.names import ReductionName


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    shard: Shard | None = None,
    group: dist.ProcessGroup | None = None,
    ignore_index: int = -100,
    reduction: ReductionName = "mean",
    label_smoothing: float = 0.0,
    workspace: int | None = None,
    z_loss: float = 0.0,
    entropy: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    normalizer: Tensor | float | None = None,
    return_lse: bool = False,
    return_z_loss: bool = False,
    return_accuracy: bool = False,
    return_argmax: bool = False,
) -> Any:  # as fused_losses.functional has it
    """:func:`fused_losses.functional.linear_cross_entropy` with classes spread over processes.

    Every process calls it, with the same input, target and options. A chunk of rows has local logits in a
    workspace; the chunk's numbers are gathered (see :func:`cross_entropy`), and gradients made at once. The
    sum of the input's gradients over processes is the one communication of the backward.

    Args:
        input: (N, D), on every process.
        linear_weight: the local classes' (C_local, D), or a DTensor (C, D) with `Shard(0)`.
        target: class indices (N), numbered over all classes, or probabilities of the local classes,
            (N, C_local).
        linear_bias: (C_local), or a DTensor (C) with `Shard(0)`.
        weight: a factor for each local class, or such a DTensor.
        shard: which classes are local, as in :func:`cross_entropy`.
        group: the processes, as there.
        ignore_index: the same.
        reduction: the same.
        label_smoothing: the same.
        workspace: bytes of local logits at a time; 128 MiB at most if not given.
        z_loss: as :func:`cross_entropy` has it, and all that follow.
        entropy: the same.
        logit_scale: the same.
        softcap: the same.
        normalizer: the same.
        return_lse: the same. For its gradient, the backward makes the logits again.
        return_z_loss: the same; so does its gradient.
        return_accuracy: the same.
        return_argmax: the same.

    Returns:
        The loss, a plain tensor, the same on every process; a
        :class:`fused_losses.functional.CrossEntropyOutput` of such if any more is asked for.

    Raises:
        IndexError: a class out of range, on the CPU.
        ValueError: other placements; another reduction.
        RuntimeError: shapes or dtypes that no kernels take.

    Example:
        >>> from fused_losses import distributed
        >>> shard = distributed.Shard.of_rank(8)
        >>> hidden, local_head = torch.zeros(2, 16), torch.ones(shard.size, 16)
        >>> distributed.linear_cross_entropy(hidden, local_head, torch.tensor([0, 7]), shard=shard)
        tensor(2.0794)
    """
    head, shard = localized(linear_weight, 0, shard, group)
    if linear_bias is not None:
        linear_bias, _ = localized(linear_bias, 0, shard, group)
    options = Options(shard, ignore_index, label_smoothing, reduction, z_loss, entropy, logit_scale, softcap)
    requested = Requested(return_lse, return_z_loss, return_accuracy, return_argmax)
    divisor = divisor_of(normalizer, reduction, input.device)
    compared = Target.of(target, weight, options)
    largest = requested.needs_argmax
    operands = whole(input), head, linear_bias
    rows = LinearVocabParallel.apply(*operands, compared, divisor, workspace, largest)
    return build_output(Rows(*rows), requested, compared)


class LinearVocabParallel(Function):
    """The loss, and the gradients of the head, made in the forward unless each row has its own loss."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        linear_weight: Tensor,
        linear_bias: Tensor | None,
        target: Target,
        normalizer: Tensor | None,
        workspace: int | None,
        largest: bool,
    ) -> Rows:
        """The results of rows, for which processes communicate once a chunk.

        Args:
            ctx: autograd's.
            input: (N, D).
            linear_weight: (C_local, D).
            linear_bias: (C_local) or None.
            target: what rows are compared with.
            normalizer: what the mean divides by instead, (), float64.
            workspace: bytes of local logits at a time, or None.
            largest: whether the classes of the largest logits are wanted.
        """
        wanted = ctx.needs_input_grad[:3]
        head = Head(input, linear_weight, linear_bias)
        chunks = _Chunks(head, target, workspace)
        in_forward = target.options.reduction != "none" and any(wanted)
        merged, gradients = _forward(chunks, wanted if in_forward else (False,) * 3, largest)
        rows, ctx.factor = reduce_losses(merged, target, normalizer, input.dtype)
        ctx.target, ctx.merged, ctx.wanted, ctx.workspace = target, merged, wanted, workspace
        ctx.gradients = [gradients] if in_forward else None
        ctx.mark_non_differentiable(rows.argmax, rows.right, rows.divisor)
        ctx.set_materialize_grads(False)
        # The backward has the target at hand; autograd tells if someone has written to it since.
        ctx.save_for_backward(input, linear_weight, linear_bias, *target.operands)
        return rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor | None, lse_gradient: Tensor | None, *_: None) -> tuple[Any, ...]:
        """The gradients of input (N, D), added up over processes, weight (C_local, D) and bias (C_local)."""
        (input, weight, bias, *_), target = ctx.saved_tensors, ctx.target
        gradients = take_gradients(ctx)
        if gradients is None or upstream is None or lse_gradient is not None:
            chunks = _Chunks(Head(input, weight, bias), target, ctx.workspace)
            slope = slopes(upstream, ctx.factor, target)
            gradients = _backward(chunks, ctx.wanted, ctx.merged, slope, lse_gradient)
        else:
            counts = Counted.of_rows(target.counts)
            gradients = scaled(gradients, upstream.double() * ctx.factor, counts, in_place=True)
        results = [
            None if made is None else made.to(operand.dtype)
            for made, operand in zip(gradients, (input, weight, bias), strict=True)
        ]
        if results[0] is not None:
            target.options.shard.sum(results[0])
        return *results, None, None, None, None


Wanted = tuple[bool, bool, bool]
"""Whether the gradients of input, weight and bias are wanted."""


class _Chunks:
    """The rows of a head, input (N, D) and weight (C_local, D), and of its target, a chunk at a time."""

    def __init__(self, head: Head, target: Target, workspace: int | None) -> None:
        self.head, self.target = head, target
        self.dtype = choose_logits_dtype(head.input.dtype, head.input.device)
        # Not by the local shard's size: every process must have the same chunks.
        shard = target.options.shard
        classes = -(-shard.classes // dist.get_world_size(shard.group))
        self.rows = rows_per_chunk(classes, self.dtype.itemsize, workspace, head.input.device)

    def run(self, wanted: Wanted, kernel: Callable[[slice, Tensor], None]) -> list[Tensor | None]:
        """Calls kernel(rows, logits), as `over_chunks`; at least once, since all processes must gather."""
        total = max(1, self.head.input.shape[0])
        chunks = (slice(begin, begin + self.rows) for begin in range(0, total, self.rows))
        return over_chunks(self.head, chunks, self.rows, self.dtype, wanted, kernel)


def _forward(chunks: _Chunks, wanted: Wanted, largest: bool) -> tuple[Merged, list[Tensor | None]]:
    """What is known of all rows, and if wanted, the gradients of the sum of their losses."""
    parts: list[Merged] = []

    def kernel(rows: slice, logits: Tensor) -> None:
        target = chunks.target.rows(rows)
        numbers = target.options.shard.gather(local_numbers(logits, target, largest))
        parts.append(merge(numbers, target, largest))
        if any(wanted):
            write_gradient(logits, target, parts[-1], target.counts.double(), None, logits)

    gradients = chunks.run(wanted, kernel)
    return Merged.joined(parts), gradients


def _backward(
    chunks: _Chunks, wanted: Wanted, merged: Merged, slope: Tensor, lse_gradient: Tensor | None
) -> list[Tensor | None]:
    """The gradients of losses times `slope` (N), and of log-sum-exps times `lse_gradient` (N)."""
    slope = slope.expand(chunks.target.counts.shape)

    def kernel(rows: slice, logits: Tensor) -> None:
        lse = None if lse_gradient is None else lse_gradient[rows]
        write_gradient(logits, chunks.target.rows(rows), merged.rows(rows), slope[rows], lse, logits)

    return chunks.run(wanted, kernel)

"""Vocab-parallel cross-entropy of a linear head, without its logits."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from fused_losses.distributed.cross_entropy import reduced, slopes
from fused_losses.distributed.rows import Merged, Options, Target, local_numbers, merge, write_gradient
from fused_losses.distributed.shard import Shard, localized, whole
from fused_losses.functional.cross_entropy import divisor_of
from fused_losses.linear.chunks import rows_per_chunk
from fused_losses.linear.products import Products, logits_dtype


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
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    normalizer: Tensor | float | None = None,
    workspace: int | None = None,
) -> Tensor:
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
        z_loss: the same.
        normalizer: the same.
        workspace: bytes of local logits at a time; 96 MiB if not given.

    Returns:
        The loss, a plain tensor, the same on every process.

    Raises:
        IndexError: a class out of range, on the CPU.
        ValueError: other placements; another reduction.
    """
    if reduction not in ("none", "mean", "sum"):
        raise ValueError(f"{reduction} is not a valid value for reduction")
    head, shard = localized(linear_weight, 0, shard, group)
    if linear_bias is not None:
        linear_bias, _ = localized(linear_bias, 0, shard, group)
    if weight is not None:
        weight, _ = localized(weight, 0, shard, group)
    if target.is_floating_point():
        target, _ = localized(target, -1, shard, group)
    options = Options(shard, ignore_index, label_smoothing, z_loss)
    divisor = divisor_of(normalizer, reduction, input.device)
    loss: Tensor = LinearVocabParallel.apply(
        whole(input), head, linear_bias, whole(target), weight, options, reduction, divisor, workspace
    )
    return loss


class LinearVocabParallel(Function):
    """The loss, and the gradients of the head, made in the forward unless each row has its own loss."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        linear_weight: Tensor,
        linear_bias: Tensor | None,
        target: Tensor,
        weight: Tensor | None,
        options: Options,
        reduction: str,
        normalizer: Tensor | None,
        workspace: int | None,
    ) -> Tensor:
        """The loss."""
        wanted = ctx.needs_input_grad[:3]
        compared = Target.of(target, weight, options)
        loop = _Loop(input, linear_weight, linear_bias, compared, workspace)
        at_once = reduction != "none" and any(wanted)
        merged, gradients = loop.run(None, None, wanted if at_once else (False,) * 3)
        losses = merged.losses(compared)
        loss, factor = reduced(losses, merged, compared, reduction, normalizer)
        ctx.loop, ctx.wanted = (input, linear_weight, linear_bias, compared, workspace), wanted
        ctx.merged, ctx.factor = merged, factor
        ctx.gradients = gradients if at_once else None
        ctx.save_for_backward(input, linear_weight, linear_bias)
        return loss.to(input.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the head; the input's, added up over processes."""
        operands = ctx.saved_tensors
        gradients, factor = ctx.gradients, upstream.double() * ctx.factor
        ctx.gradients = None
        if gradients is None:
            compared = ctx.loop[3]
            slope = slopes(upstream, ctx.factor, compared).expand(compared.counts.shape)
            _, gradients = _Loop(*ctx.loop).run(slope, ctx.merged, ctx.wanted)
            factor = torch.ones_like(ctx.factor)
        results = [
            None if made is None else made.mul_(factor).to(operand.dtype)
            for made, operand in zip(gradients, operands, strict=True)
        ]
        if results[0] is not None:
            ctx.loop[3].options.shard.sum(results[0])
        return *results, None, None, None, None, None, None


class _Loop:
    """Chunk by chunk: local logits, what all processes know of them, gradients."""

    def __init__(
        self,
        input: Tensor,
        linear_weight: Tensor,
        linear_bias: Tensor | None,
        target: Target,
        workspace: int | None,
    ) -> None:
        self.input, self.target = input, target
        self.weight, self.bias = linear_weight, linear_bias
        self.dtype = logits_dtype(input.dtype, input.device)
        # Not by the local shard's size: every process must have the same chunks.
        each = -(-target.options.shard.classes // dist.get_world_size(target.options.shard.group))
        self.rows = rows_per_chunk(each, self.dtype.itemsize, workspace)

    def run(
        self, slope: Tensor | None, known: Merged | None, wanted: tuple[bool, ...]
    ) -> tuple[Merged, tuple[Tensor | None, ...]]:
        """What is known of all rows, and gradients of losses that are multiplied by `slope`, or 1."""
        products = Products(self.weight, self.bias, self.dtype, *wanted)
        wide = torch.float64 if self.dtype is torch.float64 else torch.float32
        of_input = self.input.new_zeros(self.input.shape, dtype=wide) if wanted[0] else None
        buffer = self.input.new_empty((self.rows, self.weight.shape[0]), dtype=self.dtype)
        parts: list[Merged] = []
        for begin in range(0, max(1, self.input.shape[0]), self.rows):
            rows = slice(begin, begin + self.rows)
            x, target = self.input[rows].to(self.dtype), self.target.of_rows(rows)
            logits = buffer[: x.shape[0]]
            products.logits(x, logits)
            if known is None:
                merged = merge(target.options.shard.gather(local_numbers(logits, target)), target)
            else:
                merged = known.of_rows(rows)
            parts.append(merged)
            if any(wanted):
                one = target.counts.double()
                write_gradient(logits, target, merged, one if slope is None else slope[rows], logits)
                made = products.gradients(logits, x)
                if of_input is not None and made is not None:
                    of_input[rows] = made
        gradients = (of_input, products.weight_gradient, products.bias_gradient)
        return known or Merged.joined(parts), gradients

"""Vocab-parallel cross-entropy of a linear head, without its logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from fused_losses.distributed.results import Rows, divided, output_of, slopes
from fused_losses.distributed.rows import Merged, local_numbers, merge, write_gradient
from fused_losses.distributed.shard import Shard, localized, whole
from fused_losses.distributed.target import Options, Target
from fused_losses.functional.cross_entropy import Asked, divisor_of
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
        RuntimeError: probabilities, where the CUDA library serves: Triton's kernels take them.
    """
    head, shard = localized(linear_weight, 0, shard, group)
    if linear_bias is not None:
        linear_bias, _ = localized(linear_bias, 0, shard, group)
    options = Options(shard, ignore_index, label_smoothing, reduction, z_loss, entropy, logit_scale, softcap)
    asked = Asked(return_lse, return_z_loss, return_accuracy, return_argmax)
    divisor = divisor_of(normalizer, reduction, input.device)
    compared = Target.of(target, weight, options)
    largest = asked.accuracy or asked.argmax
    operands = whole(input), head, linear_bias
    rows = LinearVocabParallel.apply(*operands, compared, divisor, workspace, largest)
    return output_of(Rows(*rows), asked, compared)


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
        """A collective for each chunk of rows."""
        wanted = ctx.needs_input_grad[:3]
        loop = _Loop(input, linear_weight, linear_bias, target, workspace)
        at_once = target.options.reduction != "none" and any(wanted)
        merged, gradients = loop.forward(wanted if at_once else (False,) * 3, largest)
        rows, ctx.factor = divided(merged, target, normalizer, input.dtype)
        ctx.target, ctx.merged, ctx.wanted, ctx.workspace = target, merged, wanted, workspace
        ctx.gradients = gradients if at_once else None
        ctx.mark_non_differentiable(rows.argmax, rows.right, rows.divisor)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, linear_weight, linear_bias)
        return rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor | None, of_lse: Tensor | None, *_: None) -> tuple[Any, ...]:
        """The gradients of the head; the input's, added up over processes."""
        (input, weight, bias), target = ctx.saved_tensors, ctx.target
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None or upstream is None or of_lse is not None:
            loop = _Loop(input, weight, bias, target, ctx.workspace)
            slope = slopes(upstream, ctx.factor, target)
            gradients, factor = loop.backward(ctx.wanted, ctx.merged, slope, of_lse), None
        else:
            factor = upstream.double() * ctx.factor
        results = [
            None if made is None else (made if factor is None else made.mul_(factor)).to(operand.dtype)
            for made, operand in zip(gradients, (input, weight, bias), strict=True)
        ]
        if results[0] is not None:
            target.options.shard.sum(results[0])
        return *results, None, None, None, None


Gradients = tuple[Tensor | None, ...]


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
        self.rows = rows_per_chunk(each, self.dtype.itemsize, workspace, input.device)

    def forward(self, wanted: tuple[bool, ...], largest: bool) -> tuple[Merged, Gradients]:
        """What is known of all rows, and if wanted, the gradients of the sum of their losses."""
        parts: list[Merged] = []

        def kernel(rows: slice, target: Target, logits: Tensor) -> None:
            numbers = target.options.shard.gather(local_numbers(logits, target, largest))
            parts.append(merge(numbers, target, largest))
            if any(wanted):
                write_gradient(logits, target, parts[-1], target.counts.double(), None, logits)

        gradients = self._run(kernel, wanted)
        return Merged.joined(parts), gradients

    def backward(
        self, wanted: tuple[bool, ...], merged: Merged, slope: Tensor, of_lse: Tensor | None
    ) -> Gradients:
        """The gradients of losses that are multiplied by `slope`, and of log-sum-exps by `of_lse`."""
        slope = slope.expand(self.target.counts.shape)

        def kernel(rows: slice, target: Target, logits: Tensor) -> None:
            lse = None if of_lse is None else of_lse[rows]
            write_gradient(logits, target, merged.of_rows(rows), slope[rows], lse, logits)

        return self._run(kernel, wanted)

    def _run(self, kernel: Callable[[slice, Target, Tensor], None], wanted: tuple[bool, ...]) -> Gradients:
        """Calls kernel(rows, target, logits), which turns logits into their gradient if one is wanted."""
        products = Products(self.weight, self.bias, self.dtype, *wanted)
        wide = torch.float64 if self.dtype is torch.float64 else torch.float32
        of_input = self.input.new_zeros(self.input.shape, dtype=wide) if wanted[0] else None
        buffer = self.input.new_empty((self.rows, self.weight.shape[0]), dtype=self.dtype)
        for begin in range(0, max(1, self.input.shape[0]), self.rows):
            rows = slice(begin, begin + self.rows)
            x = self.input[rows].to(self.dtype)
            logits = buffer[: x.shape[0]]
            products.logits(x, logits)
            kernel(rows, self.target.of_rows(rows), logits)
            if any(wanted):
                made = products.gradients(logits, x)
                if of_input is not None and made is not None:
                    of_input[rows] = made
        return of_input, products.weight_gradient, products.bias_gradient

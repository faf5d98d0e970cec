"""Vocab-parallel cross-entropy of logits."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from fused_losses.distributed.results import Rows, build_output, reduce_losses, slopes
from fused_losses.distributed.rows import local_numbers, merge, write_gradient
from fused_losses.distributed.shard import Shard, localized
from fused_losses.distributed.target import Options, Target
from fused_losses.losses.softmax_outputs import Requested, divisor_of
from fused_losses.names import ReductionName


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    shard: Shard | None = None,
    group: dist.ProcessGroup | None = None,
    ignore_index: int = -100,
    reduction: ReductionName = "mean",
    label_smoothing: float = 0.0,
    backward: Literal["recompute", "inplace"] = "recompute",
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
    """:func:`fused_losses.functional.cross_entropy` with classes spread over processes.

    Every process calls it, with the same rows and options. The forward reads the local logits once and
    gathers a few numbers of each row, 12 bytes for each process and more where more is asked for (see
    `docs/distributed.md`); the backward communicates nothing.

    Args:
        input: the local logits (N, C_local), or a DTensor (N, C) with `Shard(1)`.
        target: class indices (N), numbered over all classes, or probabilities of the local classes,
            (N, C_local).
        weight: a factor for each local class, (C_local), or a DTensor (C) with `Shard(0)`.
        shard: which classes are local. If not given, every process tells the others how many it has, which
            waits for them; a DTensor knows.
        group: the processes, if neither a shard nor a DTensor says; all of them if not given.
        ignore_index: rows with this class count neither in the loss nor in the mean's divisor.
        reduction: "none", "mean" or "sum".
        label_smoothing: in [0, 1], over all classes.
        backward: "recompute": the backward makes the gradient in a buffer of its own. "inplace": it does so
            over the input, which the forward leaves as it is.
        z_loss: the factor of each row's squared log-sum-exp.
        entropy: the factor of each row's entropy, which lessens the loss.
        logit_scale: what logits are multiplied by first.
        softcap: what they are held within; None for no cap.
        normalizer: what the mean divides by instead.
        return_lse: each row's log-sum-exp, too.
        return_z_loss: the z-loss itself, too.
        return_accuracy: whether targets have the largest logit, too.
        return_argmax: the classes of the largest logits, too.

    Returns:
        The loss, a plain tensor, the same on every process; a
        :class:`fused_losses.functional.CrossEntropyOutput` of such if any more is asked for.

    Raises:
        IndexError: a class out of range, on the CPU. On a GPU such a row has no class, on any process.
        ValueError: placements other than those above; another reduction or `backward`.
        RuntimeError: shapes or dtypes that no kernels take.

    Example:
        >>> from fused_losses import distributed
        >>> shard = distributed.Shard.of_rank(8)
        >>> local_logits = torch.zeros(2, shard.size)
        >>> distributed.cross_entropy(local_logits, torch.tensor([0, 7]), shard=shard)
        tensor(2.0794)
    """
    if backward not in ("recompute", "inplace"):
        raise ValueError(f"backward must be 'recompute' or 'inplace', but it is {backward!r}")
    local, shard = localized(input, -1, shard, group)
    options = Options(shard, ignore_index, label_smoothing, reduction, z_loss, entropy, logit_scale, softcap)
    requested = Requested(return_lse, return_z_loss, return_accuracy, return_argmax)
    divisor = divisor_of(normalizer, reduction, local.device)
    compared = Target.of(target, weight, options)
    rows = VocabParallel.apply(local, compared, divisor, backward, requested.needs_argmax)
    return build_output(Rows(*rows), requested, compared)


class VocabParallel(Function):
    """The loss and what rows have besides; the gradient of the local logits."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        target: Target,
        normalizer: Tensor | None,
        backward: str,
        largest: bool,
    ) -> Rows:
        """The results of rows, for which processes communicate once.

        Args:
            ctx: autograd's.
            input: local logits, (N, C_local).
            target: what rows are compared with.
            normalizer: what the mean divides by instead, (), float64.
            backward: "recompute" or "inplace".
            largest: whether the classes of the largest logits are wanted.
        """
        numbers = target.options.shard.gather(local_numbers(input, target, largest))
        merged = merge(numbers, target, largest)
        rows, ctx.factor = reduce_losses(merged, target, normalizer, input.dtype)
        ctx.target, ctx.merged, ctx.backward = target, merged, backward
        ctx.mark_non_differentiable(rows.argmax, rows.right, rows.divisor)
        ctx.set_materialize_grads(False)
        # The backward has the target at hand; autograd tells if someone has written to it since.
        ctx.save_for_backward(input, *target.operands)
        return rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor | None, lse_gradient: Tensor | None, *_: None) -> tuple[Any, ...]:
        """The gradient of the local logits (N, C_local), given that of the loss, () or (N), and lse's (N)."""
        input, *_ = ctx.saved_tensors
        slope = slopes(upstream, ctx.factor, ctx.target)
        into = input.detach() if ctx.backward == "inplace" else torch.empty_like(input)
        write_gradient(input, ctx.target, ctx.merged, slope, lse_gradient, into)
        if ctx.backward == "inplace":
            torch.autograd.graph.increment_version(input)
        return into, None, None, None, None

"""The Kullback-Leibler divergence over a linear head, for distillation."""

from __future__ import annotations

import torch
from torch import Tensor

from fused_losses import losses
from fused_losses.call import accumulate_dtype
from fused_losses.linear.autograd import Strategy
from fused_losses.linear.choice import over_head
from fused_losses.linear.chunks import rows_per_chunk
from fused_losses.linear.composition import logits_of, warn_of_all_logits
from fused_losses.linear.head import Head, is_head
from fused_losses.modes import autocasts
from fused_losses.names import DivergenceReductionName


def divergence(
    head: Head,
    reduction: DivergenceReductionName,
    workspace: int | None,
    backward: Strategy,
    target: Tensor,
    log_target: bool = False,
) -> Tensor:
    """kl_div of the log-softmax of logits (N, V): cross-entropy of probabilities t, plus the sum of t log t.

    Args:
        head: the layer; input (N, D).
        reduction: "none", "sum", "mean" or "batchmean".
        workspace: bytes of logits at a time.
        backward: the strategy that is asked for.
        target: probabilities or their logarithms, (N, V), dense or sparse (COO).
        log_target: whether target holds logarithms.

    Raises:
        ValueError: another reduction.
    """
    logits_shape = head.input.shape[:-1] + head.classes
    by_chunks = reduction != "none" and target.shape == logits_shape and is_head(head)
    if target.is_sparse and (log_target or not by_chunks):  # the exponential of 0 is not 0
        target = target.to_dense()
    if not by_chunks or (target.requires_grad and torch.is_grad_enabled()):
        why = "each row has a loss, or the target requires grad or has another shape"
        warn_of_all_logits("kl_div", None if workspace is None else "workspace", why)
        log_probabilities = logits_of(head).log_softmax(-1)
        target = target.to_dense() if target.is_sparse else target
        return losses.kl_div(log_probabilities, target, reduction=reduction, log_target=log_target)
    probabilities = target.exp() if log_target else target
    divisors = {"sum": 1, "batchmean": logits_shape[0], "mean": target.numel()}
    if reduction not in divisors:
        raise ValueError(f"{reduction} is not a valid value for reduction")
    dtype = head.accumulate_dtype
    keywords = {"target": probabilities}
    (cross,) = over_head(head, "cross_entropy", keywords, "sum", workspace, backward, dtype=dtype)
    chunk_rows = rows_per_chunk(target.shape[-1], dtype.itemsize, workspace, target.device)
    constant = _negative_entropy(probabilities, chunk_rows)
    loss: Tensor = (cross + constant) / divisors[reduction]
    return loss if autocasts(head.input) else loss.to(head.input.dtype)


def _negative_entropy(probabilities: Tensor, chunk_rows: int) -> Tensor:
    """The sum of t log t over probabilities (N, V): (), without a second tensor of that size."""
    dtype = accumulate_dtype(probabilities.dtype)
    probabilities = probabilities.detach()
    # What a sparse tensor does not store is 0, and has no part in the sum.
    chunks = (probabilities.coalesce().values() if probabilities.is_sparse else probabilities).split(
        chunk_rows
    )
    return torch.stack([-torch.special.entr(chunk.to(dtype)).sum() for chunk in chunks]).sum()

"""The Kullback-Leibler divergence over a linear head, for distillation."""

from __future__ import annotations

import torch
from torch import Tensor

from fused_losses import functional
from fused_losses import unpatched as F
from fused_losses.dispatch import autocasts
from fused_losses.linear.autograd import Strategy
from fused_losses.linear.chunks import rows_per_chunk
from fused_losses.linear.run import Head, is_head, over_head, wide


def divergence(
    head: Head,
    reduction: str,
    workspace: int | None,
    backward: Strategy,
    target: Tensor,
    log_target: bool = False,
) -> Tensor:
    """kl_div of the softmax of logits: cross-entropy of probabilities t, and the constant sum of t log t."""
    logits = (*head[0].shape[:-1], *head[1].shape[:-1])
    chunked = reduction != "none" and target.shape == logits and not target.is_sparse and is_head(*head)
    if not chunked or (target.requires_grad and torch.is_grad_enabled()):
        log_probabilities = F.linear(*head).log_softmax(-1)
        divergence: Tensor = functional.kl_div(
            log_probabilities, target, reduction=reduction, log_target=log_target
        )
        return divergence
    probabilities = target.exp() if log_target else target
    divisors = {"sum": 1, "batchmean": logits[0], "mean": target.numel()}
    if reduction not in divisors:
        raise ValueError(f"{reduction} is not a valid value for reduction")
    dtype = wide(head)
    keywords = {"target": probabilities}
    (cross,) = over_head(head, "cross_entropy", keywords, "sum", workspace, backward, dtype=dtype)
    rows = rows_per_chunk(target.shape[-1], dtype.itemsize, workspace, target.device)
    constant = _negative_entropy(probabilities, rows)
    loss: Tensor = (cross + constant) / divisors[reduction]
    return loss if autocasts(head[0]) else loss.to(head[0].dtype)


def _negative_entropy(probabilities: Tensor, rows: int) -> Tensor:
    """The sum of t log t, without a second tensor of that size."""
    dtype = torch.float64 if probabilities.dtype is torch.float64 else torch.float32
    parts = [-torch.special.entr(chunk.to(dtype)).sum() for chunk in probabilities.detach().split(rows)]
    return torch.stack(parts).sum()

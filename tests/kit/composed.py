"""Cross-entropy with all that it has beyond torch, in torch's operators and nothing else."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_losses.functional import CrossEntropyOutput
from fused_losses.registry import LOSSES

BEYOND_TORCH = {*LOSSES["cross_entropy"].extensions}


def cross_entropy(*operands: Tensor, **options) -> Tensor:
    """The loss: torch's own function where that has all the options, else composed of its operators."""
    if BEYOND_TORCH.isdisjoint(options):
        return F.cross_entropy(*operands, **options)
    return outputs(*operands, **options).loss


def outputs(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    entropy: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    normalizer: Tensor | float | None = None,
) -> CrossEntropyOutput:
    """All of them, computed in float32 at least; the loss is rounded to the input's dtype once."""
    wide = torch.float64 if input.dtype is torch.float64 else torch.float32
    has_labels = not target.is_floating_point()
    logits, weight = input.to(wide), None if weight is None else weight.to(wide)
    target = target if has_labels else target.to(wide)
    axis = 0 if input.dim() == 1 else 1
    x = logits if logit_scale == 1 else logit_scale * logits
    x = x if softcap is None else softcap * torch.tanh(x / softcap)

    rows = input.shape[:1] + input.shape[2:] if input.dim() > 1 else ()
    counts = target != ignore_index if has_labels else torch.ones(rows, dtype=torch.bool)
    losses = F.cross_entropy(
        x, target, weight, ignore_index=ignore_index, reduction="none", label_smoothing=label_smoothing
    )
    lse = torch.where(counts, x.logsumexp(axis), 0)
    log_p = x.log_softmax(axis)
    p = log_p.exp()
    disorder = torch.where(counts, -(p * log_p.masked_fill(p == 0, 0)).sum(axis), 0)
    z_losses = z_loss * lse**2
    if z_loss:
        losses = losses + z_losses
    if entropy:
        losses = losses - entropy * disorder

    argmax = torch.where(counts, x.argmax(axis), -1)
    labels = target if has_labels else target.argmax(axis)
    hits = ((argmax == labels) & counts).float()
    divisor = counts.sum()
    if weight is not None and has_labels:
        divisor = (weight[torch.where(counts, target, 0).long()] * counts).sum()
    divisor = divisor if normalizer is None else normalizer
    each = (losses, z_losses, hits)
    if reduction == "sum":
        each = tuple(x.sum() for x in each)
    elif reduction == "mean":
        each = (losses.sum() / divisor, z_losses.sum() / divisor, hits.sum() / counts.sum())
    loss, z, accuracy = each
    return CrossEntropyOutput(loss.to(input.dtype), lse, z, accuracy, argmax)

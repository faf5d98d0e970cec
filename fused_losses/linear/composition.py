"""Losses over a linear head with all logits in memory: torch's linear layer, and the loss of this package."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fused_losses import losses
from fused_losses import unpatched as F
from fused_losses.linear.head import Head
from fused_losses.losses.checks import warn


def logits_of(head: Head) -> Tensor:
    """All logits of a head, (N, V) or (N, C, d1, ...)."""
    bias = None if head.bias is None else head.bias.reshape(-1)
    logits = F.linear(head.input, head.weight.flatten(0, -2), bias)
    return logits if len(head.classes) == 1 else logits.reshape(*head.input.shape[:-1], *head.classes)


def warn_of_all_logits(loss: str, asked: str | None, why: str) -> None:
    """Tells a user who has asked for chunks that there are none.

    Args:
        loss: its name.
        asked: the argument by which chunks were asked for; None if they were not.
        why: why all logits are made.
    """
    if asked is not None:
        warn(f"linear {loss}: ``{asked}`` ignored; all logits are in memory, since {why}.")


def composed(head: Head, loss: str, **keywords: Any) -> Any:
    """A loss of all logits, by its name, for what cannot go chunk by chunk; sparse operands become dense."""
    dense = {
        name: x.to_dense() if isinstance(x, Tensor) and x.is_sparse else x for name, x in keywords.items()
    }
    return getattr(losses, loss)(logits_of(head), **dense)

"""The same losses with all logits there: torch's linear layer, and the loss of this package."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fused_losses import functional
from fused_losses import unpatched as F


def composed(
    input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, loss: str, **keywords: Any
) -> Any:
    """What cannot go chunk by chunk, and what derivatives of any order see through."""
    classes = linear_weight.shape[:-1]
    flat_bias = None if linear_bias is None else linear_bias.reshape(-1)
    logits = F.linear(input, linear_weight.reshape(-1, linear_weight.shape[-1]), flat_bias)
    if len(classes) != 1:
        logits = logits.reshape(*input.shape[:-1], *classes)
    return getattr(functional, loss)(logits, **keywords)

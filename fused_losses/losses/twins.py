"""What a loss is compared with: torch's function, or a composition of torch's operators if torch has none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fused_losses import losses, unpatched
from fused_losses.dispatch import run_by_torch
from fused_losses.losses.plans import PLANS
from fused_losses.registry import LOSSES


def twin_of(name: str) -> Callable[..., Tensor]:
    """The function of torch.nn.functional, or one that takes the same arguments but runs no kernel."""
    if LOSSES[name].has_twin:
        function: Callable[..., Tensor] = getattr(unpatched, name)
        return function

    def composed(*arguments: Any, **options: Any) -> Tensor:
        call = PLANS[name](*arguments, **options)
        # Without a call, the loss itself runs by torch's operators.
        return getattr(losses, name)(*arguments, **options) if call is None else run_by_torch(call)

    return composed

"""Which kernels run a call of a loss, by which strategy, and why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map

from fused_losses import modes


def explain(function: Callable[..., Tensor], *arguments: Any, **keywords: Any) -> str:
    """Calls a loss on copies of its arguments, and says which kernels ran, by which strategy, and why.

    Args:
        function: a function of `fused_losses.functional`, or a module of this package.
        arguments: its arguments.
        keywords: its keyword arguments.

    Returns:
        One line for each loss that was called.

    Raises:
        Exception: whatever the call itself raises.

    Example:
        >>> x = torch.zeros(3, requires_grad=True)
        >>> print(fused_losses.explain(fused_losses.functional.mse_loss, x, torch.ones(3)))
        mse_loss: C++ (...), fused, as asked for
    """

    def copied(value: Any) -> Any:
        # A copy of a leaf tensor is not a leaf, so backward="inplace" may overwrite it.
        return value.clone() if isinstance(value, Tensor) else value

    with modes.explained() as decisions:
        function(*tree_map(copied, arguments), **tree_map(copied, keywords))
    return "\n".join(decisions) or "no loss of this package was called"

"""torch.nn's module of a linear head with cross-entropy, without the head's logits."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from fused_losses.linear.autograd import Strategy
from fused_losses.linear.functions import linear_cross_entropy
from fused_losses.names import ReductionName


class LinearCrossEntropyLoss(nn.LinearCrossEntropyLoss):
    """:func:`fused_losses.functional.linear_cross_entropy` as a module that holds the head.

    Args:
        in_features: how many features the head takes, D.
        num_classes: how many classes there are, C.
        workspace: bytes of logits at a time; 128 MiB at most if not given.
        backward: "fused": the forward makes the gradients, and holds them until the backward. "recompute":
            the backward makes the logits again.
        keywords: those of :class:`torch.nn.LinearCrossEntropyLoss`.

    Example:
        >>> loss = fused_losses.LinearCrossEntropyLoss(16, 100)
        >>> loss(torch.randn(4, 16), torch.arange(4)).shape
        torch.Size([])
    """

    fused_options: Mapping[str, Any] = MappingProxyType({"workspace": None, "backward": "fused"})
    """What torch.nn's module lacks, by name: no attributes of their own, as in `FusedModule`."""

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        workspace: int | None = None,
        backward: Strategy = "fused",
        **keywords: Any,
    ) -> None:
        super().__init__(in_features, num_classes, **keywords)
        self.fused_options = {"workspace": workspace, "backward": backward}

    if TYPE_CHECKING:

        def __call__(self, input: Tensor, target: Tensor) -> Tensor:
            """As `forward`."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of the head's logits of `input`, (N, D) or (D)."""
        classes = (self.num_classes, *self.out_features)
        bias = self.linear.bias
        loss: Tensor = linear_cross_entropy(
            input,
            self.linear.weight.reshape(*classes, self.linear.in_features),
            target,
            linear_bias=None if bias is None else bias.reshape(classes),
            weight=self.weight,
            reduction=cast(ReductionName, self.reduction),
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            options=self.options,
            **self.fused_options,
        )
        return loss

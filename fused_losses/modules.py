"""The loss modules of torch.nn: subclasses, so that isinstance, repr, state_dict and pickles keep working."""

from __future__ import annotations

import torch
from torch import Tensor

from fused_losses import functional as F
from fused_losses.dispatch import Backward

__all__ = [
    "BCELoss",
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "L1Loss",
    "MSELoss",
    "NLLLoss",
]


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """:func:`fused_losses.functional.cross_entropy` as a module."""

    # On the class: modules that torch.nn pickled do not have it.
    backward: Backward = "fused"

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        *,
        backward: Backward = "fused",
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        self.backward = backward

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of logits `input` for class indices or probabilities `target`."""
        return F.cross_entropy(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            backward=self.backward,
        )


class NLLLoss(torch.nn.NLLLoss):
    """:func:`fused_losses.functional.nll_loss` as a module."""

    backward: Backward = "fused"

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: str = "mean",
        *,
        backward: Backward = "fused",
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction)
        self.backward = backward

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of log-probabilities `input` for class indices `target`."""
        return F.nll_loss(
            input,
            target,
            weight=self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            backward=self.backward,
        )


class BCELoss(torch.nn.BCELoss):
    """:func:`fused_losses.functional.binary_cross_entropy` as a module."""

    backward: Backward = "fused"
    ignore_index: float | None = None

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        *,
        ignore_index: float | None = None,
        backward: Backward = "fused",
    ) -> None:
        super().__init__(weight, size_average, reduce, reduction)
        self.ignore_index = ignore_index
        self.backward = backward

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of probabilities `input` for `target`."""
        return F.binary_cross_entropy(
            input,
            target,
            weight=self.weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            backward=self.backward,
        )


class BCEWithLogitsLoss(torch.nn.BCEWithLogitsLoss):
    """:func:`fused_losses.functional.binary_cross_entropy_with_logits` as a module."""

    backward: Backward = "fused"
    ignore_index: float | None = None

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        pos_weight: Tensor | None = None,
        *,
        ignore_index: float | None = None,
        backward: Backward = "fused",
    ) -> None:
        super().__init__(weight, size_average, reduce, reduction, pos_weight)
        self.ignore_index = ignore_index
        self.backward = backward

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of logits `input` for `target`."""
        return F.binary_cross_entropy_with_logits(
            input,
            target,
            self.weight,
            pos_weight=self.pos_weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            backward=self.backward,
        )


class MSELoss(torch.nn.MSELoss):
    """:func:`fused_losses.functional.mse_loss` as a module."""

    backward: Backward = "fused"

    def __init__(
        self,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        *,
        backward: Backward = "fused",
    ) -> None:
        super().__init__(size_average, reduce, reduction)
        self.backward = backward

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of `input` for `target`."""
        return F.mse_loss(input, target, reduction=self.reduction, backward=self.backward)


class L1Loss(torch.nn.L1Loss):
    """:func:`fused_losses.functional.l1_loss` as a module."""

    backward: Backward = "fused"

    def __init__(
        self,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        *,
        backward: Backward = "fused",
    ) -> None:
        super().__init__(size_average, reduce, reduction)
        self.backward = backward

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of `input` for `target`."""
        return F.l1_loss(input, target, reduction=self.reduction, backward=self.backward)

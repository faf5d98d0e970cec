"""Losses of the difference of input and target, as modules."""

from __future__ import annotations

from torch import nn

from fused_losses import functional as F
from fused_losses.call import Backward
from fused_losses.fused_module import FusedModule
from fused_losses.names import ReductionName


class L1Loss(FusedModule, nn.L1Loss, function=F.l1_loss):
    """:func:`fused_losses.functional.l1_loss` as a module."""

    def __init__(
        self,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: ReductionName = "mean",
        *,
        backward: Backward = "fused",
    ) -> None:
        super().__init__(size_average, reduce, reduction)
        self.fused_options = {"backward": backward}


class MSELoss(FusedModule, nn.MSELoss, function=F.mse_loss):
    """:func:`fused_losses.functional.mse_loss` as a module."""

    def __init__(
        self,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: ReductionName = "mean",
        *,
        backward: Backward = "fused",
    ) -> None:
        super().__init__(size_average, reduce, reduction)
        self.fused_options = {"backward": backward}


class SmoothL1Loss(FusedModule, nn.SmoothL1Loss, function=F.smooth_l1_loss):
    """:func:`fused_losses.functional.smooth_l1_loss` as a module."""

    def __init__(
        self,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: ReductionName = "mean",
        beta: float = 1.0,
        *,
        backward: Backward = "fused",
    ) -> None:
        super().__init__(size_average, reduce, reduction, beta)
        self.fused_options = {"backward": backward}


class HuberLoss(FusedModule, nn.HuberLoss, function=F.huber_loss):
    """:func:`fused_losses.functional.huber_loss` as a module."""

    def __init__(
        self, reduction: ReductionName = "mean", delta: float = 1.0, *, backward: Backward = "fused"
    ) -> None:
        super().__init__(reduction, delta)
        self.fused_options = {"backward": backward}

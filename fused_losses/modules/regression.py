"""Losses of the difference of input and target, as modules."""

from __future__ import annotations

from torch import nn

from fused_losses import functional as F
from fused_losses.call import Backward
from fused_losses.fused_module import FusedModule
from fused_losses.names import ReductionName


class L1Loss(FusedModule, nn.L1Loss, function=F.l1_loss):
    """:func:`fused_losses.functional.l1_loss` as a module.

    Example:
        >>> fused_losses.L1Loss()(torch.zeros(3), torch.tensor([1.0, -2.0, 3.0]))
        tensor(2.)
    """

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
    """:func:`fused_losses.functional.mse_loss` as a module.

    Example:
        >>> fused_losses.MSELoss(reduction="sum")(torch.zeros(3), torch.ones(3))
        tensor(3.)
    """

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
    """:func:`fused_losses.functional.smooth_l1_loss` as a module.

    Example:
        >>> fused_losses.SmoothL1Loss(beta=2.0)(torch.zeros(2), torch.tensor([0.5, 3.0]))
        tensor(1.0312)
    """

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
    """:func:`fused_losses.functional.huber_loss` as a module.

    Example:
        >>> fused_losses.HuberLoss(delta=2.0)(torch.zeros(2), torch.tensor([0.5, 3.0]))
        tensor(2.0625)
    """

    def __init__(
        self, reduction: ReductionName = "mean", delta: float = 1.0, *, backward: Backward = "fused"
    ) -> None:
        super().__init__(reduction, delta)
        self.fused_options = {"backward": backward}

"""Losses that are zero beyond a margin, as modules."""

from __future__ import annotations

from torch import nn

from fused_losses import functional as F
from fused_losses.call import Backward
from fused_losses.fused_module import FusedModule
from fused_losses.names import ReductionName


class HingeEmbeddingLoss(FusedModule, nn.HingeEmbeddingLoss, function=F.hinge_embedding_loss):
    """:func:`fused_losses.functional.hinge_embedding_loss` as a module.

    Example:
        >>> fused_losses.HingeEmbeddingLoss()(torch.tensor([0.5, 0.25]), torch.tensor([1, -1]))
        tensor(0.6250)
    """

    def __init__(
        self,
        margin: float = 1.0,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: ReductionName = "mean",
        *,
        backward: Backward = "fused",
    ) -> None:
        super().__init__(margin, size_average, reduce, reduction)
        self.fused_options = {"backward": backward}


class MarginRankingLoss(FusedModule, nn.MarginRankingLoss, function=F.margin_ranking_loss):
    """:func:`fused_losses.functional.margin_ranking_loss` as a module.

    Example:
        >>> loss = fused_losses.MarginRankingLoss(margin=0.5)
        >>> loss(torch.tensor([1.0, 2.0]), torch.tensor([0.5, 3.0]), torch.tensor([1, 1]))
        tensor(0.7500)
    """

    def __init__(
        self,
        margin: float = 0.0,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: ReductionName = "mean",
        *,
        backward: Backward = "fused",
    ) -> None:
        super().__init__(margin, size_average, reduce, reduction)
        self.fused_options = {"backward": backward}

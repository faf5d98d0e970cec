"""Losses that are zero beyond a margin, as modules."""

from __future__ import annotations

from torch import nn

from fused_losses import functional as F
from fused_losses.call import Backward
from fused_losses.fused_module import FusedModule
from fused_losses.names import ReductionName


class HingeEmbeddingLoss(FusedModule, nn.HingeEmbeddingLoss, function=F.hinge_embedding_loss):
    """:func:`fused_losses.functional.hinge_embedding_loss` as a module."""

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
    """:func:`fused_losses.functional.margin_ranking_loss` as a module."""

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

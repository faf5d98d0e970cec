"""Losses of distances between vectors, as modules."""

from __future__ import annotations

from torch import nn

from fused_losses import functional as F
from fused_losses.call import Backward
from fused_losses.fused_module import FusedModule
from fused_losses.losses.vectors import DistanceFunction
from fused_losses.names import ReductionName


class TripletMarginLoss(FusedModule, nn.TripletMarginLoss, function=F.triplet_margin_loss):
    """:func:`fused_losses.functional.triplet_margin_loss` as a module.

    Example:
        >>> loss = fused_losses.TripletMarginLoss()
        >>> loss(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]]))
        tensor(4.0000)
    """

    def __init__(
        self,
        margin: float = 1.0,
        p: float = 2.0,
        eps: float = 1e-6,
        swap: bool = False,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: ReductionName = "mean",
        *,
        backward: Backward = "fused",
    ) -> None:
        super().__init__(margin, p, eps, swap, size_average, reduce, reduction)
        self.fused_options = {"backward": backward}


class TripletMarginWithDistanceLoss(
    FusedModule, nn.TripletMarginWithDistanceLoss, function=F.triplet_margin_with_distance_loss
):
    """:func:`fused_losses.functional.triplet_margin_with_distance_loss` as a module.

    Example:
        >>> from fused_losses.functional import cosine_distance
        >>> loss = fused_losses.TripletMarginWithDistanceLoss(distance_function=cosine_distance)
        >>> loss(*torch.eye(3).unsqueeze(1))
        tensor(1.)
    """

    def __init__(
        self,
        *,
        distance_function: DistanceFunction | None = None,
        margin: float = 1.0,
        swap: bool = False,
        reduction: ReductionName = "mean",
        backward: Backward = "fused",
    ) -> None:
        super().__init__(distance_function=distance_function, margin=margin, swap=swap, reduction=reduction)
        self.fused_options = {"backward": backward}


class CosineEmbeddingLoss(FusedModule, nn.CosineEmbeddingLoss, function=F.cosine_embedding_loss):
    """:func:`fused_losses.functional.cosine_embedding_loss` as a module.

    Example:
        >>> loss = fused_losses.CosineEmbeddingLoss()
        >>> loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor([1]))
        tensor(0.2929)
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

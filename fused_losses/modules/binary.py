"""Losses of one sigmoid for each element, as modules."""

from __future__ import annotations

from torch import Tensor, nn

from fused_losses import functional as F
from fused_losses.call import Backward
from fused_losses.fused_module import FusedModule
from fused_losses.names import ReductionName


class BCELoss(FusedModule, nn.BCELoss, function=F.binary_cross_entropy, per_call=("normalizer",)):
    """:func:`fused_losses.functional.binary_cross_entropy` as a module.

    `normalizer` is an argument of each call.

    Example:
        >>> fused_losses.BCELoss()(torch.tensor([0.5, 0.25]), torch.tensor([1.0, 0.0]))
        tensor(0.4904)
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: ReductionName = "mean",
        *,
        ignore_index: float | None = None,
        label_smoothing: float = 0.0,
        backward: Backward = "fused",
    ) -> None:
        super().__init__(weight, size_average, reduce, reduction)
        self.fused_options = {
            "ignore_index": ignore_index,
            "label_smoothing": label_smoothing,
            "backward": backward,
        }


class BCEWithLogitsLoss(
    FusedModule,
    nn.BCEWithLogitsLoss,
    function=F.binary_cross_entropy_with_logits,
    per_call=("normalizer",),
):
    """:func:`fused_losses.functional.binary_cross_entropy_with_logits` as a module.

    `normalizer` is an argument of each call.

    Example:
        >>> loss = fused_losses.BCEWithLogitsLoss(pos_weight=torch.tensor([3.0]))
        >>> loss(torch.zeros(2, 1), torch.tensor([[1.0], [0.0]]))
        tensor(1.3863)
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: ReductionName = "mean",
        pos_weight: Tensor | None = None,
        *,
        ignore_index: float | None = None,
        label_smoothing: float = 0.0,
        backward: Backward = "fused",
    ) -> None:
        super().__init__(weight, size_average, reduce, reduction, pos_weight)
        self.fused_options = {
            "ignore_index": ignore_index,
            "label_smoothing": label_smoothing,
            "backward": backward,
        }


class MultiLabelSoftMarginLoss(
    FusedModule, nn.MultiLabelSoftMarginLoss, function=F.multilabel_soft_margin_loss
):
    """:func:`fused_losses.functional.multilabel_soft_margin_loss` as a module.

    Example:
        >>> fused_losses.MultiLabelSoftMarginLoss()(torch.zeros(2, 3), torch.ones(2, 3))
        tensor(0.6931)
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: ReductionName = "mean",
        *,
        backward: Backward = "fused",
    ) -> None:
        super().__init__(weight, size_average, reduce, reduction)
        self.fused_options = {"backward": backward}


class SoftMarginLoss(FusedModule, nn.SoftMarginLoss, function=F.soft_margin_loss):
    """:func:`fused_losses.functional.soft_margin_loss` as a module.

    Example:
        >>> fused_losses.SoftMarginLoss()(torch.tensor([2.0, -2.0]), torch.tensor([1.0, 1.0]))
        tensor(1.1269)
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

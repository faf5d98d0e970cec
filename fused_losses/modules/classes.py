"""Losses of class indices, as modules."""

from __future__ import annotations

from torch import Tensor, nn

from fused_losses import functional as F
from fused_losses.call import Backward
from fused_losses.fused_module import FusedModule
from fused_losses.names import ReductionName


class NLLLoss(FusedModule, nn.NLLLoss, function=F.nll_loss):
    """:func:`fused_losses.functional.nll_loss` as a module.

    Example:
        >>> fused_losses.NLLLoss()(torch.full((2, 3), -1.0), torch.tensor([0, 2]))
        tensor(1.)
    """

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: ReductionName = "mean",
        *,
        backward: Backward = "fused",
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction)
        self.fused_options = {"backward": backward}


class MultiMarginLoss(FusedModule, nn.MultiMarginLoss, function=F.multi_margin_loss):
    """:func:`fused_losses.functional.multi_margin_loss` as a module.

    Example:
        >>> fused_losses.MultiMarginLoss(p=2)(torch.tensor([[0.5, 2.0, 1.0]]), torch.tensor([2]))
        tensor(1.4167)
    """

    def __init__(
        self,
        p: int = 1,
        margin: float = 1.0,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: ReductionName = "mean",
        *,
        backward: Backward = "fused",
    ) -> None:
        super().__init__(p, margin, weight, size_average, reduce, reduction)
        self.fused_options = {"backward": backward}


class MultiLabelMarginLoss(FusedModule, nn.MultiLabelMarginLoss, function=F.multilabel_margin_loss):
    """:func:`fused_losses.functional.multilabel_margin_loss` as a module.

    Example:
        >>> loss = fused_losses.MultiLabelMarginLoss()
        >>> loss(torch.tensor([[0.1, 0.2, 0.4, 0.8]]), torch.tensor([[3, 0, -1, 1]]))
        tensor(0.8500)
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

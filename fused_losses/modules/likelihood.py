"""Negative log-likelihoods and divergences, as modules."""

from __future__ import annotations

from torch import nn

from fused_losses import functional as F
from fused_losses.call import Backward
from fused_losses.fused_module import FusedModule
from fused_losses.names import DivergenceReductionName, ReductionName


class PoissonNLLLoss(FusedModule, nn.PoissonNLLLoss, function=F.poisson_nll_loss):
    """:func:`fused_losses.functional.poisson_nll_loss` as a module.

    Example:
        >>> fused_losses.PoissonNLLLoss()(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]))
        tensor(0.8591)
    """

    def __init__(
        self,
        log_input: bool = True,
        full: bool = False,
        size_average: bool | None = None,
        eps: float = 1e-8,
        reduce: bool | None = None,
        reduction: ReductionName = "mean",
        *,
        backward: Backward = "fused",
    ) -> None:
        super().__init__(log_input, full, size_average, eps, reduce, reduction)
        self.fused_options = {"backward": backward}


class GaussianNLLLoss(FusedModule, nn.GaussianNLLLoss, function=F.gaussian_nll_loss):
    """:func:`fused_losses.functional.gaussian_nll_loss` as a module.

    Example:
        >>> fused_losses.GaussianNLLLoss()(torch.zeros(3), torch.ones(3), torch.ones(3))
        tensor(0.5000)
    """

    def __init__(
        self,
        *,
        full: bool = False,
        eps: float = 1e-6,
        reduction: ReductionName = "mean",
        backward: Backward = "fused",
    ) -> None:
        super().__init__(full=full, eps=eps, reduction=reduction)
        self.fused_options = {"backward": backward}


class KLDivLoss(FusedModule, nn.KLDivLoss, function=F.kl_div):
    """:func:`fused_losses.functional.kl_div` as a module.

    Example:
        >>> loss = fused_losses.KLDivLoss(reduction="batchmean")
        >>> loss(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]))
        tensor(0.1308)
    """

    def __init__(
        self,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: DivergenceReductionName = "mean",
        log_target: bool = False,
        *,
        backward: Backward = "fused",
    ) -> None:
        super().__init__(size_average, reduce, reduction, log_target)
        self.fused_options = {"backward": backward}

"""The loss modules of torch.nn: subclasses, so that isinstance, repr, state_dict and pickles keep working."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import AdaptiveLogSoftmaxWithLoss, CTCLoss, NLLLoss2d

from fused_losses import functional as F
from fused_losses.call import Backward
from fused_losses.fused_module import FusedModule
from fused_losses.losses.vectors import DistanceFunction

__all__ = [
    "AdaptiveLogSoftmaxWithLoss",
    "BCELoss",
    "BCEWithLogitsLoss",
    "CTCLoss",
    "CosineEmbeddingLoss",
    "CrossEntropyLoss",
    "GaussianNLLLoss",
    "HingeEmbeddingLoss",
    "HuberLoss",
    "KLDivLoss",
    "L1Loss",
    "MSELoss",
    "MarginRankingLoss",
    "MultiLabelMarginLoss",
    "MultiLabelSoftMarginLoss",
    "MultiMarginLoss",
    "NLLLoss",
    "NLLLoss2d",
    "PoissonNLLLoss",
    "SmoothL1Loss",
    "SoftMarginLoss",
    "TripletMarginLoss",
    "TripletMarginWithDistanceLoss",
]

if hasattr(nn, "LinearCrossEntropyLoss"):  # torch 2.11 does not have it
    from fused_losses.linear.module import LinearCrossEntropyLoss as LinearCrossEntropyLoss

    __all__ += ["LinearCrossEntropyLoss"]


class CrossEntropyLoss(FusedModule, nn.CrossEntropyLoss, function=F.cross_entropy, per_call=("normalizer",)):
    """:func:`fused_losses.functional.cross_entropy` as a module; `normalizer` is an argument of each call."""

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
        z_loss: float = 0.0,
        entropy: float = 0.0,
        logit_scale: float = 1.0,
        softcap: float | None = None,
        return_lse: bool = False,
        return_z_loss: bool = False,
        return_accuracy: bool = False,
        return_argmax: bool = False,
    ) -> None:
        super().__init__(weight, size_average, ignore_index, reduce, reduction, label_smoothing)
        self.fused_options = {
            "backward": backward,
            "z_loss": z_loss,
            "entropy": entropy,
            "logit_scale": logit_scale,
            "softcap": softcap,
            "return_lse": return_lse,
            "return_z_loss": return_z_loss,
            "return_accuracy": return_accuracy,
            "return_argmax": return_argmax,
        }


class NLLLoss(FusedModule, nn.NLLLoss, function=F.nll_loss):
    """:func:`fused_losses.functional.nll_loss` as a module."""

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
        self.fused_options = {"backward": backward}


class MultiMarginLoss(FusedModule, nn.MultiMarginLoss, function=F.multi_margin_loss):
    """:func:`fused_losses.functional.multi_margin_loss` as a module."""

    def __init__(
        self,
        p: int = 1,
        margin: float = 1.0,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        *,
        backward: Backward = "fused",
    ) -> None:
        super().__init__(p, margin, weight, size_average, reduce, reduction)
        self.fused_options = {"backward": backward}


class MultiLabelMarginLoss(FusedModule, nn.MultiLabelMarginLoss, function=F.multilabel_margin_loss):
    """:func:`fused_losses.functional.multilabel_margin_loss` as a module."""

    def __init__(
        self,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        *,
        backward: Backward = "fused",
    ) -> None:
        super().__init__(size_average, reduce, reduction)
        self.fused_options = {"backward": backward}


class BCELoss(FusedModule, nn.BCELoss, function=F.binary_cross_entropy):
    """:func:`fused_losses.functional.binary_cross_entropy` as a module."""

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
        self.fused_options = {"ignore_index": ignore_index, "backward": backward}


class BCEWithLogitsLoss(FusedModule, nn.BCEWithLogitsLoss, function=F.binary_cross_entropy_with_logits):
    """:func:`fused_losses.functional.binary_cross_entropy_with_logits` as a module."""

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
        self.fused_options = {"ignore_index": ignore_index, "backward": backward}


class MultiLabelSoftMarginLoss(
    FusedModule, nn.MultiLabelSoftMarginLoss, function=F.multilabel_soft_margin_loss
):
    """:func:`fused_losses.functional.multilabel_soft_margin_loss` as a module."""

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        *,
        backward: Backward = "fused",
    ) -> None:
        super().__init__(weight, size_average, reduce, reduction)
        self.fused_options = {"backward": backward}


class SoftMarginLoss(FusedModule, nn.SoftMarginLoss, function=F.soft_margin_loss):
    """:func:`fused_losses.functional.soft_margin_loss` as a module."""

    def __init__(
        self,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        *,
        backward: Backward = "fused",
    ) -> None:
        super().__init__(size_average, reduce, reduction)
        self.fused_options = {"backward": backward}


class L1Loss(FusedModule, nn.L1Loss, function=F.l1_loss):
    """:func:`fused_losses.functional.l1_loss` as a module."""

    def __init__(
        self,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
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
        reduction: str = "mean",
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
        reduction: str = "mean",
        beta: float = 1.0,
        *,
        backward: Backward = "fused",
    ) -> None:
        super().__init__(size_average, reduce, reduction, beta)
        self.fused_options = {"backward": backward}


class HuberLoss(FusedModule, nn.HuberLoss, function=F.huber_loss):
    """:func:`fused_losses.functional.huber_loss` as a module."""

    def __init__(self, reduction: str = "mean", delta: float = 1.0, *, backward: Backward = "fused") -> None:
        super().__init__(reduction, delta)
        self.fused_options = {"backward": backward}


class PoissonNLLLoss(FusedModule, nn.PoissonNLLLoss, function=F.poisson_nll_loss):
    """:func:`fused_losses.functional.poisson_nll_loss` as a module."""

    def __init__(
        self,
        log_input: bool = True,
        full: bool = False,
        size_average: bool | None = None,
        eps: float = 1e-8,
        reduce: bool | None = None,
        reduction: str = "mean",
        *,
        backward: Backward = "fused",
    ) -> None:
        super().__init__(log_input, full, size_average, eps, reduce, reduction)
        self.fused_options = {"backward": backward}


class GaussianNLLLoss(FusedModule, nn.GaussianNLLLoss, function=F.gaussian_nll_loss):
    """:func:`fused_losses.functional.gaussian_nll_loss` as a module."""

    def __init__(
        self, *, full: bool = False, eps: float = 1e-6, reduction: str = "mean", backward: Backward = "fused"
    ) -> None:
        super().__init__(full=full, eps=eps, reduction=reduction)
        self.fused_options = {"backward": backward}


class KLDivLoss(FusedModule, nn.KLDivLoss, function=F.kl_div):
    """:func:`fused_losses.functional.kl_div` as a module."""

    def __init__(
        self,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        log_target: bool = False,
        *,
        backward: Backward = "fused",
    ) -> None:
        super().__init__(size_average, reduce, reduction, log_target)
        self.fused_options = {"backward": backward}


class HingeEmbeddingLoss(FusedModule, nn.HingeEmbeddingLoss, function=F.hinge_embedding_loss):
    """:func:`fused_losses.functional.hinge_embedding_loss` as a module."""

    def __init__(
        self,
        margin: float = 1.0,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
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
        reduction: str = "mean",
        *,
        backward: Backward = "fused",
    ) -> None:
        super().__init__(margin, size_average, reduce, reduction)
        self.fused_options = {"backward": backward}


class TripletMarginLoss(FusedModule, nn.TripletMarginLoss, function=F.triplet_margin_loss):
    """:func:`fused_losses.functional.triplet_margin_loss` as a module."""

    def __init__(
        self,
        margin: float = 1.0,
        p: float = 2.0,
        eps: float = 1e-6,
        swap: bool = False,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        *,
        backward: Backward = "fused",
    ) -> None:
        super().__init__(margin, p, eps, swap, size_average, reduce, reduction)
        self.fused_options = {"backward": backward}


class TripletMarginWithDistanceLoss(
    FusedModule, nn.TripletMarginWithDistanceLoss, function=F.triplet_margin_with_distance_loss
):
    """:func:`fused_losses.functional.triplet_margin_with_distance_loss` as a module."""

    def __init__(
        self,
        *,
        distance_function: DistanceFunction | None = None,
        margin: float = 1.0,
        swap: bool = False,
        reduction: str = "mean",
        backward: Backward = "fused",
    ) -> None:
        super().__init__(distance_function=distance_function, margin=margin, swap=swap, reduction=reduction)
        self.fused_options = {"backward": backward}


class CosineEmbeddingLoss(FusedModule, nn.CosineEmbeddingLoss, function=F.cosine_embedding_loss):
    """:func:`fused_losses.functional.cosine_embedding_loss` as a module."""

    def __init__(
        self,
        margin: float = 0.0,
        size_average: bool | None = None,
        reduce: bool | None = None,
        reduction: str = "mean",
        *,
        backward: Backward = "fused",
    ) -> None:
        super().__init__(margin, size_average, reduce, reduction)
        self.fused_options = {"backward": backward}

"""The loss modules of torch.nn: subclasses, so that isinstance, repr, state_dict and pickles keep working.

Each file has the modules of the functions that are in the file of the same name in `fused_losses/losses/`.
"""

from torch import nn
from torch.nn import AdaptiveLogSoftmaxWithLoss, CTCLoss, NLLLoss2d

from fused_losses.modules.binary import BCELoss, BCEWithLogitsLoss, MultiLabelSoftMarginLoss, SoftMarginLoss
from fused_losses.modules.classes import MultiLabelMarginLoss, MultiMarginLoss, NLLLoss
from fused_losses.modules.cross_entropy import CrossEntropyLoss
from fused_losses.modules.focal import AsymmetricLoss, SigmoidFocalLoss
from fused_losses.modules.likelihood import GaussianNLLLoss, KLDivLoss, PoissonNLLLoss
from fused_losses.modules.margin import HingeEmbeddingLoss, MarginRankingLoss
from fused_losses.modules.regression import HuberLoss, L1Loss, MSELoss, SmoothL1Loss
from fused_losses.modules.vectors import CosineEmbeddingLoss, TripletMarginLoss, TripletMarginWithDistanceLoss

__all__ = [
    "AdaptiveLogSoftmaxWithLoss",
    "AsymmetricLoss",
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
    "SigmoidFocalLoss",
    "SmoothL1Loss",
    "SoftMarginLoss",
    "TripletMarginLoss",
    "TripletMarginWithDistanceLoss",
]

if hasattr(nn, "LinearCrossEntropyLoss"):  # torch 2.11 does not have it
    from fused_losses.linear.module import LinearCrossEntropyLoss as LinearCrossEntropyLoss

    __all__ += ["LinearCrossEntropyLoss"]

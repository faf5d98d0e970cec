"""The losses, a file for each kind: their operands are checked, a call is planned, and run.

plans.py            what every loss's plan is, by name
checks.py           which shapes and dtypes kernels take
softmax_outputs.py  what cross_entropy returns besides the loss
twins.py            what a loss is compared with
"""

from fused_losses.losses.binary import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    multilabel_soft_margin_loss,
    soft_margin_loss,
)
from fused_losses.losses.classes import multi_margin_loss, multilabel_margin_loss, nll_loss
from fused_losses.losses.cross_entropy import cross_entropy
from fused_losses.losses.focal import asymmetric_loss, sigmoid_focal_loss
from fused_losses.losses.likelihood import gaussian_nll_loss, kl_div, poisson_nll_loss
from fused_losses.losses.margin import hinge_embedding_loss, margin_ranking_loss
from fused_losses.losses.regression import huber_loss, l1_loss, mse_loss, smooth_l1_loss
from fused_losses.losses.softmax_outputs import CrossEntropyOutput
from fused_losses.losses.vectors import (
    cosine_distance,
    cosine_embedding_loss,
    euclidean_distance,
    triplet_margin_loss,
    triplet_margin_with_distance_loss,
)

__all__ = [
    "CrossEntropyOutput",
    "asymmetric_loss",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cosine_distance",
    "cosine_embedding_loss",
    "cross_entropy",
    "euclidean_distance",
    "gaussian_nll_loss",
    "hinge_embedding_loss",
    "huber_loss",
    "kl_div",
    "l1_loss",
    "margin_ranking_loss",
    "mse_loss",
    "multi_margin_loss",
    "multilabel_margin_loss",
    "multilabel_soft_margin_loss",
    "nll_loss",
    "poisson_nll_loss",
    "sigmoid_focal_loss",
    "smooth_l1_loss",
    "soft_margin_loss",
    "triplet_margin_loss",
    "triplet_margin_with_distance_loss",
]

"""The losses of torch.nn.functional: same names, same arguments, same results, same errors.

Every function takes torch's arguments and one more, keyword-only:

    backward  "fused" (default): loss and gradient are computed in one pass by the forward; the gradient
              takes one buffer of the input's size until backward. "recompute": the forward computes the
              loss only, the backward reads the inputs again. "inplace": as fused, but the gradient
              overwrites the input: no memory at all, and autograd raises if anything else needs the
              input. See DESIGN.md.

Shapes, dtypes and formulas are those of the functions of the same name in torch.nn.functional. Losses have
the input's dtype, and float32 under autocast; arithmetic is in float32 (float64 for float64) throughout.
"""

from __future__ import annotations

from torch.nn.functional import ctc_loss

from fused_losses.functional.binary import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    multilabel_soft_margin_loss,
    soft_margin_loss,
)
from fused_losses.functional.classes import multi_margin_loss, multilabel_margin_loss, nll_loss
from fused_losses.functional.cross_entropy import CrossEntropyOutput, cross_entropy
from fused_losses.functional.likelihood import gaussian_nll_loss, kl_div, poisson_nll_loss
from fused_losses.functional.margin import hinge_embedding_loss, margin_ranking_loss
from fused_losses.functional.regression import huber_loss, l1_loss, mse_loss, smooth_l1_loss
from fused_losses.functional.vectors import (
    cosine_distance,
    cosine_embedding_loss,
    euclidean_distance,
    triplet_margin_loss,
    triplet_margin_with_distance_loss,
)

# After the others, which it looks up in this module.
from fused_losses.functional.linear import linear_cross_entropy, linear_loss  # isort: skip

__all__ = [
    "CrossEntropyOutput",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "cosine_distance",
    "cosine_embedding_loss",
    "cross_entropy",
    "ctc_loss",
    "euclidean_distance",
    "gaussian_nll_loss",
    "hinge_embedding_loss",
    "huber_loss",
    "kl_div",
    "l1_loss",
    "linear_cross_entropy",
    "linear_loss",
    "margin_ranking_loss",
    "mse_loss",
    "multi_margin_loss",
    "multilabel_margin_loss",
    "multilabel_soft_margin_loss",
    "nll_loss",
    "poisson_nll_loss",
    "smooth_l1_loss",
    "soft_margin_loss",
    "triplet_margin_loss",
    "triplet_margin_with_distance_loss",
]

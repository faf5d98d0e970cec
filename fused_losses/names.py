"""The names that users give, as type checkers know them."""

from __future__ import annotations

from typing import Literal

ReductionName = Literal["none", "mean", "sum"]
"""What becomes of the losses of all elements or rows."""

DivergenceReductionName = Literal["none", "mean", "sum", "batchmean"]
"""The same for `kl_div`, whose sum may be divided by the number of rows."""

BackendName = Literal["compiled", "triton"]
"""Whose kernels run."""

TwinName = Literal[
    "cross_entropy",
    "nll_loss",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "l1_loss",
    "mse_loss",
    "smooth_l1_loss",
    "huber_loss",
    "poisson_nll_loss",
    "gaussian_nll_loss",
    "kl_div",
    "margin_ranking_loss",
    "hinge_embedding_loss",
    "soft_margin_loss",
    "multilabel_soft_margin_loss",
    "multi_margin_loss",
    "multilabel_margin_loss",
    "triplet_margin_loss",
    "triplet_margin_with_distance_loss",
    "cosine_embedding_loss",
]
"""The losses that torch.nn.functional has, too."""

LossName = Literal[TwinName, "sigmoid_focal_loss", "asymmetric_loss"]
"""The losses of `fused_losses.registry`."""

PatchedName = Literal[TwinName, "linear_cross_entropy"]
"""The functions of torch.nn.functional that `fused_losses.patch` replaces."""

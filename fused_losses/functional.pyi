"""The functions' types: what `cross_entropy` returns depends on what is asked for."""

from typing import overload

from torch import Tensor
from torch.nn import LinearCrossEntropyOptions
from torch.nn.functional import ctc_loss as ctc_loss
from typing_extensions import Unpack

from fused_losses.call import Backward
from fused_losses.linear.autograd import Strategy
from fused_losses.linear.contrastive import clip_loss as clip_loss
from fused_losses.linear.contrastive import siglip_loss as siglip_loss
from fused_losses.linear.functions import linear_loss as linear_loss
from fused_losses.losses import (
    CrossEntropyOutput as CrossEntropyOutput,
)
from fused_losses.losses import (
    asymmetric_loss as asymmetric_loss,
)
from fused_losses.losses import (
    binary_cross_entropy as binary_cross_entropy,
)
from fused_losses.losses import (
    binary_cross_entropy_with_logits as binary_cross_entropy_with_logits,
)
from fused_losses.losses import (
    cosine_distance as cosine_distance,
)
from fused_losses.losses import (
    cosine_embedding_loss as cosine_embedding_loss,
)
from fused_losses.losses import (
    euclidean_distance as euclidean_distance,
)
from fused_losses.losses import (
    gaussian_nll_loss as gaussian_nll_loss,
)
from fused_losses.losses import (
    hinge_embedding_loss as hinge_embedding_loss,
)
from fused_losses.losses import (
    huber_loss as huber_loss,
)
from fused_losses.losses import (
    kl_div as kl_div,
)
from fused_losses.losses import (
    l1_loss as l1_loss,
)
from fused_losses.losses import (
    margin_ranking_loss as margin_ranking_loss,
)
from fused_losses.losses import (
    mse_loss as mse_loss,
)
from fused_losses.losses import (
    multi_margin_loss as multi_margin_loss,
)
from fused_losses.losses import (
    multilabel_margin_loss as multilabel_margin_loss,
)
from fused_losses.losses import (
    multilabel_soft_margin_loss as multilabel_soft_margin_loss,
)
from fused_losses.losses import (
    nll_loss as nll_loss,
)
from fused_losses.losses import (
    poisson_nll_loss as poisson_nll_loss,
)
from fused_losses.losses import (
    sigmoid_focal_loss as sigmoid_focal_loss,
)
from fused_losses.losses import (
    smooth_l1_loss as smooth_l1_loss,
)
from fused_losses.losses import (
    soft_margin_loss as soft_margin_loss,
)
from fused_losses.losses import (
    triplet_margin_loss as triplet_margin_loss,
)
from fused_losses.losses import (
    triplet_margin_with_distance_loss as triplet_margin_with_distance_loss,
)
from fused_losses.losses.softmax_keywords import Alone, Unknown, WithAccuracy, WithArgmax, WithLse, WithZLoss
from fused_losses.names import ReductionName

__all__ = [
    "CrossEntropyOutput",
    "asymmetric_loss",
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "clip_loss",
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
    "siglip_loss",
    "sigmoid_focal_loss",
    "smooth_l1_loss",
    "soft_margin_loss",
    "triplet_margin_loss",
    "triplet_margin_with_distance_loss",
]

@overload
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: ReductionName = "mean",
    label_smoothing: float = 0.0,
    *,
    backward: Backward = "fused",
    normalizer: Tensor | float | None = None,
    **more: Unpack[Alone],
) -> Tensor: ...
@overload
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: ReductionName = "mean",
    label_smoothing: float = 0.0,
    *,
    backward: Backward = "fused",
    normalizer: Tensor | float | None = None,
    **more: Unpack[WithLse],
) -> CrossEntropyOutput: ...
@overload
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: ReductionName = "mean",
    label_smoothing: float = 0.0,
    *,
    backward: Backward = "fused",
    normalizer: Tensor | float | None = None,
    **more: Unpack[WithZLoss],
) -> CrossEntropyOutput: ...
@overload
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: ReductionName = "mean",
    label_smoothing: float = 0.0,
    *,
    backward: Backward = "fused",
    normalizer: Tensor | float | None = None,
    **more: Unpack[WithAccuracy],
) -> CrossEntropyOutput: ...
@overload
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: ReductionName = "mean",
    label_smoothing: float = 0.0,
    *,
    backward: Backward = "fused",
    normalizer: Tensor | float | None = None,
    **more: Unpack[WithArgmax],
) -> CrossEntropyOutput: ...
@overload
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: ReductionName = "mean",
    label_smoothing: float = 0.0,
    *,
    backward: Backward = "fused",
    normalizer: Tensor | float | None = None,
    **more: Unpack[Unknown],
) -> Tensor | CrossEntropyOutput: ...
@overload
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: ReductionName = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: LinearCrossEntropyOptions | None = None,
    workspace: int | None = None,
    backward: Strategy = "fused",
    normalizer: Tensor | float | None = None,
    **more: Unpack[Alone],
) -> Tensor: ...
@overload
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: ReductionName = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: LinearCrossEntropyOptions | None = None,
    workspace: int | None = None,
    backward: Strategy = "fused",
    normalizer: Tensor | float | None = None,
    **more: Unpack[WithLse],
) -> CrossEntropyOutput: ...
@overload
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: ReductionName = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: LinearCrossEntropyOptions | None = None,
    workspace: int | None = None,
    backward: Strategy = "fused",
    normalizer: Tensor | float | None = None,
    **more: Unpack[WithZLoss],
) -> CrossEntropyOutput: ...
@overload
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: ReductionName = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: LinearCrossEntropyOptions | None = None,
    workspace: int | None = None,
    backward: Strategy = "fused",
    normalizer: Tensor | float | None = None,
    **more: Unpack[WithAccuracy],
) -> CrossEntropyOutput: ...
@overload
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: ReductionName = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: LinearCrossEntropyOptions | None = None,
    workspace: int | None = None,
    backward: Strategy = "fused",
    normalizer: Tensor | float | None = None,
    **more: Unpack[WithArgmax],
) -> CrossEntropyOutput: ...
@overload
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: ReductionName = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: LinearCrossEntropyOptions | None = None,
    workspace: int | None = None,
    backward: Strategy = "fused",
    normalizer: Tensor | float | None = None,
    **more: Unpack[Unknown],
) -> Tensor | CrossEntropyOutput: ...

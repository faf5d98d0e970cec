"""Losses of pairs of features against all others: every pair's logit is made, a chunk of rows at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from fused_losses import modes
from fused_losses.linear.autograd import Strategy
from fused_losses.linear.functions import linear_cross_entropy, linear_loss


def clip_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor | float,
    *,
    logit_bias: Tensor | float | None = None,
    workspace: int | None = None,
    backward: Strategy = "fused",
) -> Tensor:
    r"""CLIP's loss of N pairs: each image's softmax over all texts, and each text's over all images.

    With logits :math:`x_{ij} = a\, u_i \cdot v_j + b` of features u and v, it is
    :math:`\frac{1}{2N} \sum_i (\mathrm{lse}_j\, x_{ij} + \mathrm{lse}_j\, x_{ji} - 2 x_{ii})`. From Radford
    et al., "Learning Transferable Visual Models From Natural Language Supervision" (2021); values are those
    of open_clip.loss.ClipLoss. There is no N x N matrix: both softmaxes go through
    :func:`linear_cross_entropy`, the other features being the head. For several processes, there is
    :func:`fused_losses.distributed.clip_loss`.

    Args:
        image_features: u, (N, D), normalised by the caller.
        text_features: v, (N, D).
        logit_scale: a, a tensor of one number or a float.
        logit_bias: b, the same. A softmax does not see it: its gradient is 0.
        workspace: bytes of logits at a time; 128 MiB at most if not given.
        backward: "fused": the forward makes the gradients, and holds them until the backward, in the memory
            of two copies of the features in float32. "recompute": the backward makes the logits again, as any
            backward but the first does.

    Raises:
        ValueError: features of different shapes, or not of two dimensions; another `backward`; a workspace
            that is not positive.

    Example:
        >>> features = torch.eye(3)
        >>> fused_losses.functional.clip_loss(features, features, 2.0)
        tensor(0.2395)
    """
    check_pairs(image_features, text_features)
    labels = torch.arange(len(image_features), device=image_features.device)
    loss = both_softmaxes(
        image_features, text_features, image_features, text_features, labels, logit_scale, workspace, backward
    )
    return loss if logit_bias is None else with_bias(loss, logit_bias)


def siglip_loss(
    image_features: Tensor,
    text_features: Tensor,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float | None = None,
    *,
    workspace: int | None = None,
    backward: Strategy = "fused",
) -> Tensor:
    r"""SigLIP's loss of N pairs: whether an image and a text belong together, for every image and every text.

    With logits :math:`x_{ij} = a\, u_i \cdot v_j + b` of features u and v, and signs :math:`z_{ij}`, 1 for
    i = j and -1 otherwise, it is :math:`\frac{1}{N} \sum_{ij} \log(1 + e^{-z_{ij} x_{ij}})`. From Zhai et
    al., "Sigmoid Loss for Language Image Pre-Training" (2023); values are those of open_clip.loss.SigLipLoss.
    There is no N x N matrix: the loss goes through :func:`linear_loss`, whose head are the texts' features,
    and whose target is sparse. Under torch.compile, which knows no sparse tensors, the target is N x N all
    the same. For several processes, there is :func:`fused_losses.distributed.siglip_loss`.

    Args:
        image_features: u, (N, D), normalised by the caller.
        text_features: v, (N, D).
        logit_scale: a, a tensor of one number or a float.
        logit_bias: b, the same.
        workspace: bytes of logits at a time; 128 MiB at most if not given.
        backward: "fused": the forward makes the gradients, and holds them until the backward, in the memory
            of two copies of the features in float32. "recompute": the backward makes the logits again, as any
            backward but the first does.

    Raises:
        ValueError: features of different shapes, or not of two dimensions; another `backward`; a workspace
            that is not positive.

    Example:
        >>> features = torch.eye(3)
        >>> fused_losses.functional.siglip_loss(features, features, 10.0, -5.0)
        tensor(0.0201)
    """
    check_pairs(image_features, text_features)
    return sigmoids_of_pairs(image_features, text_features, 0, logit_scale, logit_bias, workspace, backward)


def check_pairs(image_features: Tensor, text_features: Tensor) -> None:
    """Raises ValueError for features that are not both (N, D)."""
    if image_features.dim() != 2 or image_features.shape != text_features.shape:
        raise ValueError(
            "image_features and text_features must both have shape (N, D), but they have "
            f"{tuple(image_features.shape)} and {tuple(text_features.shape)}"
        )


def both_softmaxes(
    image_features: Tensor,
    text_features: Tensor,
    all_images: Tensor,
    all_texts: Tensor,
    labels: Tensor,
    logit_scale: Tensor | float,
    workspace: int | None,
    backward: Strategy,
) -> Tensor:
    """The mean of the cross-entropies of images over all texts, and of texts over all images.

    Args:
        image_features: (N, D).
        text_features: (N, D).
        all_images: (M, D).
        all_texts: (M, D).
        labels: which of these belong to the N pairs, (N), int64.
        logit_scale: what logits are multiplied by.
        workspace: see `linear_cross_entropy`.
        backward: the same.
    """
    of_images, of_texts = (
        linear_cross_entropy(scaled(own, logit_scale), others, labels, workspace=workspace, backward=backward)
        for own, others in ((image_features, all_texts), (text_features, all_images))
    )
    mean: Tensor = (of_images + of_texts) / 2
    return mean


def sigmoids_of_pairs(
    image_features: Tensor,
    text_features: Tensor,
    first: int,
    logit_scale: Tensor | float,
    logit_bias: Tensor | float | None,
    workspace: int | None,
    backward: Strategy,
) -> Tensor:
    """The sum over all pairs of -log sigmoid of the logit, or of minus the logit of those that do not match.

    It is divided by the number of images.

    Args:
        image_features: (N, D).
        text_features: (M, D).
        first: which text belongs to the first image; the others follow.
        logit_scale: what logits are multiplied by.
        logit_bias: what is added to them.
        workspace: see `linear_loss`.
        backward: the same.
    """
    count, texts = len(image_features), len(text_features)
    bias = None
    if logit_bias is not None:
        bias = torch.as_tensor(logit_bias, dtype=image_features.dtype, device=image_features.device)
        bias = bias.reshape(()).expand(texts)
    # The sum over images of the mean over texts: its formula loses nothing where a logit is far from 0.
    loss = linear_loss(
        scaled(image_features, logit_scale),
        text_features,
        _matches(image_features, texts, first),
        "multilabel_soft_margin_loss",
        linear_bias=bias,
        reduction="sum",
        workspace=workspace,
        backward=backward,
    )
    return loss if count == texts else loss * (texts / count)


def _matches(features: Tensor, texts: int, first: int) -> Tensor:
    """1 where an image's text is, else 0: (N, M), sparse, but dense where it is compiled."""
    count = len(features)
    rows = torch.arange(count, device=features.device)
    if modes.is_compiling():  # torch.compile knows no sparse tensors
        columns = torch.arange(texts, device=features.device)
        return torch.eq(columns, rows.unsqueeze(1) + first).to(features.dtype)
    indices, ones = torch.stack([rows, rows + first]), features.new_ones(count)
    return torch.sparse_coo_tensor(indices, ones, (count, texts), check_invariants=False)


def scaled(features: Tensor, logit_scale: Tensor | float) -> Tensor:
    """Features times a number, in their own dtype."""
    if isinstance(logit_scale, Tensor):
        return features * logit_scale.reshape(()).to(features.dtype)
    return features * logit_scale


def with_bias(loss: Tensor, logit_bias: Tensor | float) -> Tensor:
    """A loss that does not depend on the bias, whose gradient is 0 and not absent."""
    return loss + 0 * logit_bias.reshape(()) if isinstance(logit_bias, Tensor) else loss

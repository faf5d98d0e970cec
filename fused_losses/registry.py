"""Every loss, once. Operators, their fakes, tests, benchmarks and reports walk this table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from fused_losses import reference, samples

Family = Literal["pointwise", "vectors", "softmax", "class_margin"]
"""Which engine runs a loss, and so the options of its operators; see `fused_losses.ops`."""

INPUT_GRADIENT, TARGET_GRADIENT, EXTRA_GRADIENT, STATISTICS, ARGMAX = 1, 2, 4, 8, 16
"""Bits of what an operator is asked for: derivatives with respect to its first three operands, what the
forward can keep of each row for the backward, and the class of each row's largest logit."""


@dataclass(frozen=True)
class Loss:
    """A loss: its names, its operands, and the same thing in torch's own differentiable operators."""

    name: str
    """As in torch.nn.functional; also the operator's, and the one in `csrc/formulas/`."""
    module: str
    """As in torch.nn."""
    family: Family
    reference: Callable[..., Tensor]
    """Taken where the kernels cannot go: double backward, batched upstream gradients."""
    inputs: Callable[[samples.Shape, Any], samples.Inputs]
    """The tensors of a call, in the order of torch's arguments."""
    shapes: Literal["elements", "classes", "scores", "vectors"] = "elements"
    """What the input is: anything, (N, C, ...), (N, C) or (N, D)."""
    differentiable: int = INPUT_GRADIENT | TARGET_GRADIENT
    """The operands that torch has derivatives for, too."""
    trained: tuple[int, ...] = (0,)
    """Which of `inputs` require grad in training."""
    call: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of a call in training, where they are not the defaults."""
    reads: Callable[[samples.Inputs], int] = lambda inputs: sum(tensor.nbytes for tensor in inputs)
    """Bytes of the inputs that a step must read."""
    extensions: tuple[str, ...] = ()
    """Keyword-only arguments beyond torch's signature, besides `backward`."""
    has_statistics: bool = False
    """Whether there is something of each row that the forward can keep for the backward."""


def _picked_elements(inputs: samples.Inputs) -> int:
    """nll_loss reads one element per row: the one that the class index picks."""
    log_probabilities, classes = inputs
    return classes.nbytes + classes.numel() * log_probabilities.element_size()


LOSSES: dict[str, Loss] = {
    loss.name: loss
    for loss in (
        Loss(
            "cross_entropy",
            "CrossEntropyLoss",
            "softmax",
            reference.cross_entropy,
            samples.logits_and_classes,
            "classes",
            extensions=(
                "z_loss",
                "entropy",
                "logit_scale",
                "softcap",
                "normalizer",
                "return_lse",
                "return_z_loss",
                "return_accuracy",
                "return_argmax",
            ),
            has_statistics=True,  # near each row's maximum, and the sum of exponentials relative to that
        ),
        Loss(
            "nll_loss",
            "NLLLoss",
            "softmax",
            reference.nll_loss,
            samples.log_probabilities_and_classes,
            "classes",
            differentiable=INPUT_GRADIENT,
            reads=_picked_elements,
        ),
        Loss(
            "binary_cross_entropy",
            "BCELoss",
            "pointwise",
            reference.binary_cross_entropy,
            samples.probabilities_and_labels,
            extensions=("ignore_index",),
        ),
        Loss(
            "binary_cross_entropy_with_logits",
            "BCEWithLogitsLoss",
            "pointwise",
            reference.binary_cross_entropy_with_logits,
            samples.logits_and_labels,
            extensions=("ignore_index",),
        ),
        Loss("l1_loss", "L1Loss", "pointwise", reference.torchs("l1_loss"), samples.two_normal),
        Loss("mse_loss", "MSELoss", "pointwise", reference.torchs("mse_loss"), samples.two_normal),
        Loss(
            "smooth_l1_loss",
            "SmoothL1Loss",
            "pointwise",
            reference.torchs("smooth_l1_loss", beta=float),
            samples.two_normal,
        ),
        Loss(
            "huber_loss",
            "HuberLoss",
            "pointwise",
            reference.torchs("huber_loss", delta=float),
            samples.two_normal,
        ),
        Loss(
            "poisson_nll_loss",
            "PoissonNLLLoss",
            "pointwise",
            reference.torchs("poisson_nll_loss", log_input=bool, full=bool, eps=float),
            samples.log_rates_and_counts,
        ),
        Loss(
            "gaussian_nll_loss",
            "GaussianNLLLoss",
            "pointwise",
            reference.torchs("gaussian_nll_loss", full=bool, eps=float),
            samples.means_targets_and_variances,
            differentiable=INPUT_GRADIENT | TARGET_GRADIENT | EXTRA_GRADIENT,
            trained=(0, 2),
        ),
        Loss(
            "kl_div",
            "KLDivLoss",
            "pointwise",
            reference.torchs("kl_div", log_target=bool),
            samples.two_distributions,
            call={"reduction": "batchmean"},
        ),
        Loss(
            "margin_ranking_loss",
            "MarginRankingLoss",
            "pointwise",
            reference.torchs("margin_ranking_loss", margin=float),
            samples.two_scores_and_signs,
            differentiable=INPUT_GRADIENT | TARGET_GRADIENT | EXTRA_GRADIENT,
            trained=(0, 1),
        ),
        Loss(
            "hinge_embedding_loss",
            "HingeEmbeddingLoss",
            "pointwise",
            reference.torchs("hinge_embedding_loss", margin=float),
            samples.scores_and_signs,
            differentiable=INPUT_GRADIENT,
        ),
        Loss(
            "soft_margin_loss",
            "SoftMarginLoss",
            "pointwise",
            reference.soft_margin_loss,
            samples.scores_and_signs,
            differentiable=INPUT_GRADIENT,
        ),
        Loss(
            "multilabel_soft_margin_loss",
            "MultiLabelSoftMarginLoss",
            "pointwise",
            reference.multilabel_soft_margin_loss,
            samples.logits_and_labels,
            "scores",
        ),
        Loss(
            "multi_margin_loss",
            "MultiMarginLoss",
            "class_margin",
            reference.multi_margin_loss,
            samples.logits_and_classes,
            "scores",
            differentiable=INPUT_GRADIENT,
        ),
        Loss(
            "multilabel_margin_loss",
            "MultiLabelMarginLoss",
            "class_margin",
            reference.multilabel_margin_loss,
            samples.scores_and_label_lists,
            "scores",
            differentiable=INPUT_GRADIENT,
        ),
        Loss(
            "triplet_margin_loss",
            "TripletMarginLoss",
            "vectors",
            reference.torchs("triplet_margin_loss", margin=float, p=float, eps=float, swap=bool),
            samples.triplets,
            "vectors",
            differentiable=INPUT_GRADIENT | TARGET_GRADIENT | EXTRA_GRADIENT,
            trained=(0, 1, 2),
        ),
        Loss(
            "triplet_margin_with_distance_loss",
            "TripletMarginWithDistanceLoss",
            "vectors",
            reference.triplet_margin_with_distance_loss,
            samples.triplets,
            "vectors",
            differentiable=INPUT_GRADIENT | TARGET_GRADIENT | EXTRA_GRADIENT,
            trained=(0, 1, 2),
        ),
        Loss(
            "cosine_embedding_loss",
            "CosineEmbeddingLoss",
            "vectors",
            reference.cosine_embedding_loss,
            samples.pairs_and_signs,
            "vectors",
            trained=(0, 1),
        ),
    )
}


LINEAR: dict[str, str] = {"LinearCrossEntropyLoss": "linear_cross_entropy"}
"""Modules of losses over a linear head, and their functions in torch.nn.functional."""

TORCHS_OWN: dict[str, str | None] = {
    "AdaptiveLogSoftmaxWithLoss": None,
    "CTCLoss": "ctc_loss",
    "NLLLoss2d": None,
}
"""Modules that this package only passes on, and their functions in torch.nn.functional."""


def by_family(family: Family) -> list[Loss]:
    """The losses that one engine runs."""
    return [loss for loss in LOSSES.values() if loss.family == family]


def describe(loss: Loss) -> dict[str, Any]:
    """What `info` prints of a loss."""
    return {"module": loss.module, "family": loss.family, "extensions": list(loss.extensions)}

"""Every loss, once. Operators, their fakes, tests, benchmarks and reports walk this table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from fused_losses import binary_reference, reference, samples
from fused_losses.call import Options, Parameters, PointwiseOptions, SoftmaxOptions

Family = Literal["pointwise", "vectors", "softmax", "class_margin"]
"""Which engine runs a loss, and so the options of its operators; see `fused_losses.ops`."""

OPTIONS: dict[Family, type[Options]] = {
    "pointwise": PointwiseOptions,
    "vectors": Parameters,
    "softmax": SoftmaxOptions,
    "class_margin": Parameters,
}
"""The options of a family's operators, whose fields are in the order of their schemas."""

INPUT_GRADIENT, TARGET_GRADIENT, EXTRA_GRADIENT, STATISTICS, ARGMAX = 1, 2, 4, 8, 16
"""Bits of what an operator is asked for: derivatives with respect to input, target and extra, the numbers of
each row that the forward can keep for the backward, and the class of each row's largest logit."""


@dataclass(frozen=True)
class Loss:
    """A loss: its names, its operands, and the same thing in torch's own differentiable operators."""

    name: str
    """The name in torch.nn.functional, which is also the operator's and the one in `csrc/formulas/`."""
    module: str
    """The name in torch.nn."""
    family: Family
    inputs: Callable[[samples.Shape, Any], samples.Inputs]
    """The tensors of a call, in the order of the function's arguments."""
    shapes: Literal["elements", "classes", "scores", "vectors"] = "elements"
    """What shape the input has: any, (N, C, d1, ...), (N, C) or (N, D)."""
    parameters: dict[str, float] = field(default_factory=dict)
    """The formula's numbers by name, in the operators' order, and their defaults; flags are bool."""
    composed: reference.Reference | None = None
    """The loss composed of torch's operators; None where torch's function of that name will do."""
    has_twin: bool = True
    """Whether torch.nn has the function and the module, too."""
    target_name: str = "target"
    """What the function calls its target."""
    differentiable: int = INPUT_GRADIENT | TARGET_GRADIENT
    """The operands that have derivatives, as torch has them."""
    mean_over_weights: bool = False
    """Whether the mean divides by the sum of the weights, if there are any, rather than by their number."""
    optional_extra: bool = False
    """Whether there may be a third operand, which has no derivative; those that have one must be there."""
    warns_of_broadcast: bool = False
    """Whether torch warns where input and target differ in shape."""
    trained: tuple[int, ...] = (0,)
    """Which of `inputs` require grad in training."""
    call: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of a call in training, where they are not the defaults."""
    reads: Callable[[samples.Inputs], int] = lambda inputs: sum(tensor.nbytes for tensor in inputs)
    """Bytes of the inputs that a step must read."""
    extensions: tuple[str, ...] = ()
    """Keyword-only arguments beyond torch's signature, besides `backward`."""
    has_statistics: bool = False
    """Whether the forward can keep numbers of each row for the backward."""

    @cached_property
    def reference(self) -> reference.Reference:
        """What runs where the kernels cannot go: double backward, batched upstream gradients."""
        return self.composed or reference.torchs(self.name, self.parameters)


def _picked_elements(inputs: samples.Inputs) -> int:
    """nll_loss reads one element per row, the one that the class index picks, and any weights of classes."""
    log_probabilities, classes, *weights = inputs
    picked = classes.numel() * log_probabilities.element_size()
    return classes.nbytes + picked + sum(weight.nbytes for weight in weights)


LOSSES: dict[str, Loss] = {
    loss.name: loss
    for loss in (
        Loss(
            "cross_entropy",
            "CrossEntropyLoss",
            "softmax",
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
            has_statistics=True,  # a number near each row's maximum, and the sum of exponentials beside it
            composed=reference.cross_entropy,
        ),
        Loss(
            "nll_loss",
            "NLLLoss",
            "softmax",
            samples.log_probabilities_and_classes,
            "classes",
            differentiable=INPUT_GRADIENT,
            reads=_picked_elements,
            composed=reference.nll_loss,
        ),
        Loss(
            "binary_cross_entropy",
            "BCELoss",
            "pointwise",
            samples.probabilities_and_labels,
            parameters={"label_smoothing": 0.0},
            extensions=("ignore_index", "label_smoothing", "normalizer"),
            composed=binary_reference.binary_cross_entropy,
        ),
        Loss(
            "binary_cross_entropy_with_logits",
            "BCEWithLogitsLoss",
            "pointwise",
            samples.logits_and_labels,
            optional_extra=True,  # pos_weight
            parameters={"label_smoothing": 0.0},
            extensions=("ignore_index", "label_smoothing", "normalizer"),
            composed=binary_reference.binary_cross_entropy_with_logits,
        ),
        Loss(
            "l1_loss",
            "L1Loss",
            "pointwise",
            samples.two_normal,
            mean_over_weights=True,
            warns_of_broadcast=True,
        ),
        Loss(
            "mse_loss",
            "MSELoss",
            "pointwise",
            samples.two_normal,
            mean_over_weights=True,
            warns_of_broadcast=True,
        ),
        Loss(
            "smooth_l1_loss",
            "SmoothL1Loss",
            "pointwise",
            samples.two_normal,
            parameters={"beta": 1.0},
            warns_of_broadcast=True,
        ),
        Loss(
            "huber_loss",
            "HuberLoss",
            "pointwise",
            samples.two_normal,
            parameters={"delta": 1.0},
            warns_of_broadcast=True,
        ),
        Loss(
            "poisson_nll_loss",
            "PoissonNLLLoss",
            "pointwise",
            samples.log_rates_and_counts,
            parameters={"log_input": True, "full": False, "eps": 1e-8},
        ),
        Loss(
            "gaussian_nll_loss",
            "GaussianNLLLoss",
            "pointwise",
            samples.means_targets_and_variances,
            differentiable=INPUT_GRADIENT | TARGET_GRADIENT | EXTRA_GRADIENT,
            trained=(0, 2),
            parameters={"full": False, "eps": 1e-6},
        ),
        Loss(
            "kl_div",
            "KLDivLoss",
            "pointwise",
            samples.two_distributions,
            call={"reduction": "batchmean"},
            parameters={"log_target": False},
        ),
        Loss(
            "margin_ranking_loss",
            "MarginRankingLoss",
            "pointwise",
            samples.two_scores_and_signs,
            differentiable=INPUT_GRADIENT | TARGET_GRADIENT | EXTRA_GRADIENT,
            trained=(0, 1),
            parameters={"margin": 0.0},
        ),
        Loss(
            "hinge_embedding_loss",
            "HingeEmbeddingLoss",
            "pointwise",
            samples.scores_and_signs,
            differentiable=INPUT_GRADIENT,
            parameters={"margin": 1.0},
        ),
        Loss(
            "soft_margin_loss",
            "SoftMarginLoss",
            "pointwise",
            samples.scores_and_signs,
            differentiable=INPUT_GRADIENT,
            composed=reference.soft_margin_loss,
        ),
        Loss(
            "multilabel_soft_margin_loss",
            "MultiLabelSoftMarginLoss",
            "pointwise",
            samples.logits_and_labels,
            "scores",
            composed=reference.multilabel_soft_margin_loss,
            parameters={"share": 1.0},
        ),
        Loss(
            "multi_margin_loss",
            "MultiMarginLoss",
            "class_margin",
            samples.logits_and_classes,
            "scores",
            differentiable=INPUT_GRADIENT,
            composed=reference.multi_margin_loss,
            parameters={"p": 1, "margin": 1.0},
        ),
        Loss(
            "multilabel_margin_loss",
            "MultiLabelMarginLoss",
            "class_margin",
            samples.scores_and_label_lists,
            "scores",
            differentiable=INPUT_GRADIENT,
            composed=reference.multilabel_margin_loss,
        ),
        Loss(
            "triplet_margin_loss",
            "TripletMarginLoss",
            "vectors",
            samples.triplets,
            "vectors",
            differentiable=INPUT_GRADIENT | TARGET_GRADIENT | EXTRA_GRADIENT,
            trained=(0, 1, 2),
            parameters={"margin": 1.0, "p": 2.0, "eps": 1e-6, "swap": False},
        ),
        Loss(
            "triplet_margin_with_distance_loss",
            "TripletMarginWithDistanceLoss",
            "vectors",
            samples.triplets,
            "vectors",
            differentiable=INPUT_GRADIENT | TARGET_GRADIENT | EXTRA_GRADIENT,
            trained=(0, 1, 2),
            composed=reference.triplet_margin_with_distance_loss,
            parameters={"margin": 1.0, "p": 2.0, "eps": 1e-6, "swap": False, "cosine": False},
        ),
        Loss(
            "cosine_embedding_loss",
            "CosineEmbeddingLoss",
            "vectors",
            samples.pairs_and_signs,
            "vectors",
            trained=(0, 1),
            composed=reference.cosine_embedding_loss,
            parameters={"margin": 0.0},
        ),
        Loss(
            "sigmoid_focal_loss",
            "SigmoidFocalLoss",
            "pointwise",
            samples.logits_and_labels,
            has_twin=False,
            differentiable=INPUT_GRADIENT,
            target_name="targets",
            call={"reduction": "mean"},
            parameters={"alpha": 0.25, "gamma": 2.0},
            extensions=("weight", "ignore_index", "normalizer"),
            composed=binary_reference.sigmoid_focal_loss,
        ),
        Loss(
            "asymmetric_loss",
            "AsymmetricLoss",
            "pointwise",
            samples.logits_and_labels,
            has_twin=False,
            differentiable=INPUT_GRADIENT,
            parameters={"gamma_neg": 4.0, "gamma_pos": 1.0, "clip": 0.05, "eps": 1e-8},
            extensions=("weight", "ignore_index", "normalizer"),
            composed=binary_reference.asymmetric_loss,
        ),
    )
}

TWINS: dict[str, Loss] = {name: loss for name, loss in LOSSES.items() if loss.has_twin}
"""The losses that torch.nn has, too."""

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

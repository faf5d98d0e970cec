"""Binary cross-entropies in which elements count less, the easier they are, as modules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from fused_losses import functional as F
from fused_losses.call import Backward
from fused_losses.fused_module import FusedModule
from fused_losses.names import ReductionName


class SigmoidFocalLoss(
    FusedModule, function=F.sigmoid_focal_loss, per_call=("normalizer",), attributes=("weight",)
):
    """:func:`fused_losses.functional.sigmoid_focal_loss` as a module.

    `normalizer` is an argument of each call.

    Example:
        >>> loss = fused_losses.SigmoidFocalLoss(gamma=1.5, reduction="mean")
        >>> loss(torch.zeros(3), torch.tensor([1.0, 0.0, 0.0]), normalizer=1)
        tensor(0.4289)
    """

    if TYPE_CHECKING:
        weight: Tensor | None

        def __call__(  # type: ignore[override]  # what FusedModule says of the others
            self, inputs: Tensor, targets: Tensor, *, normalizer: Tensor | float | None = None
        ) -> Tensor:
            """The loss; `normalizer` is what the mean divides by instead."""

    def __init__(
        self,
        alpha: float = 0.25,
        gamma: float = 2,
        reduction: ReductionName = "none",
        *,
        weight: Tensor | None = None,
        ignore_index: float | None = None,
        backward: Backward = "fused",
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.fused_options = {
            "alpha": alpha,
            "gamma": gamma,
            "reduction": reduction,
            "ignore_index": ignore_index,
            "backward": backward,
        }


class AsymmetricLoss(
    FusedModule, function=F.asymmetric_loss, per_call=("normalizer",), attributes=("weight",)
):
    """:func:`fused_losses.functional.asymmetric_loss` as a module.

    `normalizer` is an argument of each call.

    Example:
        >>> loss = fused_losses.AsymmetricLoss(gamma_neg=2, clip=None)
        >>> loss(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]))
        tensor(0.5199)
    """

    if TYPE_CHECKING:
        weight: Tensor | None

        def __call__(  # type: ignore[override]  # what FusedModule says of the others
            self, input: Tensor, target: Tensor, *, normalizer: Tensor | float | None = None
        ) -> Tensor:
            """The loss; `normalizer` is what the mean divides by instead."""

    def __init__(
        self,
        gamma_neg: float = 4,
        gamma_pos: float = 1,
        clip: float | None = 0.05,
        eps: float = 1e-8,
        reduction: ReductionName = "sum",
        *,
        weight: Tensor | None = None,
        ignore_index: float | None = None,
        backward: Backward = "fused",
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.fused_options = {
            "gamma_neg": gamma_neg,
            "gamma_pos": gamma_pos,
            "clip": clip,
            "eps": eps,
            "reduction": reduction,
            "ignore_index": ignore_index,
            "backward": backward,
        }

"""Softmax cross-entropy as a module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, overload

from torch import Tensor, nn
from typing_extensions import TypeVar

from fused_losses import functional as F
from fused_losses.call import Backward
from fused_losses.fused_module import FusedModule
from fused_losses.losses.softmax_outputs import CrossEntropyOutput
from fused_losses.names import ReductionName

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from fused_losses.losses.softmax_keywords import (
        Alone,
        Unknown,
        WithAccuracy,
        WithArgmax,
        WithLse,
        WithZLoss,
    )

Result = TypeVar("Result", Tensor, CrossEntropyOutput, Tensor | CrossEntropyOutput, default=Tensor)
"""What a call returns: a CrossEntropyOutput where the constructor was asked for more than the loss."""


class CrossEntropyLoss(
    FusedModule, nn.CrossEntropyLoss, Generic[Result], function=F.cross_entropy, per_call=("normalizer",)
):
    """:func:`fused_losses.functional.cross_entropy` as a module; `normalizer` is an argument of each call.

    Example:
        >>> loss = fused_losses.CrossEntropyLoss(label_smoothing=0.1, backward="inplace")
        >>> loss(torch.zeros(2, 4), torch.tensor([0, 3]))
        tensor(1.3863)
    """

    @overload
    def __init__(
        self: CrossEntropyLoss[Tensor],
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: ReductionName = "mean",
        label_smoothing: float = 0.0,
        *,
        backward: Backward = "fused",
        **more: Unpack[Alone],
    ) -> None: ...

    @overload
    def __init__(
        self: CrossEntropyLoss[CrossEntropyOutput],
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: ReductionName = "mean",
        label_smoothing: float = 0.0,
        *,
        backward: Backward = "fused",
        **more: Unpack[WithLse],
    ) -> None: ...

    @overload
    def __init__(
        self: CrossEntropyLoss[CrossEntropyOutput],
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: ReductionName = "mean",
        label_smoothing: float = 0.0,
        *,
        backward: Backward = "fused",
        **more: Unpack[WithZLoss],
    ) -> None: ...

    @overload
    def __init__(
        self: CrossEntropyLoss[CrossEntropyOutput],
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: ReductionName = "mean",
        label_smoothing: float = 0.0,
        *,
        backward: Backward = "fused",
        **more: Unpack[WithAccuracy],
    ) -> None: ...

    @overload
    def __init__(
        self: CrossEntropyLoss[CrossEntropyOutput],
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: ReductionName = "mean",
        label_smoothing: float = 0.0,
        *,
        backward: Backward = "fused",
        **more: Unpack[WithArgmax],
    ) -> None: ...

    @overload
    def __init__(
        self: CrossEntropyLoss[Tensor | CrossEntropyOutput],
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: ReductionName = "mean",
        label_smoothing: float = 0.0,
        *,
        backward: Backward = "fused",
        **more: Unpack[Unknown],
    ) -> None: ...

    def __init__(
        self,
        weight: Tensor | None = None,
        size_average: bool | None = None,
        ignore_index: int = -100,
        reduce: bool | None = None,
        reduction: ReductionName = "mean",
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

    if TYPE_CHECKING:

        def __call__(  # type: ignore[override]  # what FusedModule says of the others
            self, input: Tensor, target: Tensor, *, normalizer: Tensor | float | None = None
        ) -> Result:
            """The loss, or with it what was asked for; `normalizer` is what the mean divides by instead."""

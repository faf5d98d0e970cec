"""Every loss, once. Operators, their fakes, tests, benchmarks and reports walk this table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from fused_losses import reference

Family = Literal["pointwise", "softmax"]


@dataclass(frozen=True)
class Loss:
    """A loss: its names, its operands, and the same thing in torch's own differentiable operators."""

    name: str
    """As in torch.nn.functional; also the operator's, and the one in `csrc/formulas/`."""
    module: str
    """As in torch.nn."""
    family: Family
    """Which engine runs it, and so the schema of its operators."""
    reference: Callable[..., Tensor]
    """Taken where the kernels cannot go: double backward, forward-mode AD, torch.func."""
    extra: str | None = None
    """The name of the fourth tensor operand, after input, target and weight."""
    extensions: tuple[str, ...] = ()
    """Keyword-only arguments beyond torch's signature, besides `backward`."""
    reads: int = 2
    """Tensors of the input's size that a step must read; it writes one, the gradient."""

    has_statistics: bool = False
    """Whether there is something of each row that the forward can keep for the backward."""


LOSSES: dict[str, Loss] = {
    loss.name: loss
    for loss in (
        Loss(
            "cross_entropy",
            "CrossEntropyLoss",
            "softmax",
            reference.cross_entropy,
            reads=1,
            has_statistics=True,  # near each row's maximum, and the sum of exponentials relative to that
        ),
        Loss("nll_loss", "NLLLoss", "softmax", reference.nll_loss, reads=0),
        Loss(
            "binary_cross_entropy",
            "BCELoss",
            "pointwise",
            reference.binary_cross_entropy,
            extensions=("ignore_index",),
        ),
        Loss(
            "binary_cross_entropy_with_logits",
            "BCEWithLogitsLoss",
            "pointwise",
            reference.binary_cross_entropy_with_logits,
            extra="pos_weight",
            extensions=("ignore_index",),
        ),
        Loss("mse_loss", "MSELoss", "pointwise", reference.mse_loss),
        Loss("l1_loss", "L1Loss", "pointwise", reference.l1_loss),
    )
}


def by_family(family: Family) -> list[Loss]:
    """The losses that one engine runs."""
    return [loss for loss in LOSSES.values() if loss.family == family]


def describe(loss: Loss) -> dict[str, Any]:
    """What `info` prints of a loss."""
    return {"module": loss.module, "family": loss.family, "extensions": list(loss.extensions)}

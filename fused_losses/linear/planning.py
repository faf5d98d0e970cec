"""Which kernel a loss of logits runs, found out without logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fused_losses import functional
from fused_losses.dispatch import BATCH_MEAN, REDUCTION_CODES, Planned, outline
from fused_losses.registry import LOSSES
from fused_losses.shapes import broadcast

Operands = tuple[Tensor, Tensor | None, Tensor | None]
"""Target, weight and extra."""

_MEAN_OVER_WEIGHTS = frozenset({"l1_loss", "mse_loss"})


@dataclass(frozen=True)
class Plan:
    """A loss's operator and its operands besides the logits, for all rows."""

    name: str
    target: Tensor
    weight: Tensor | None
    extra: Tensor | None
    options: tuple[Any, ...]
    reduction: int
    logits: Tensor
    """None of their numbers: shape and dtype."""

    @property
    def options_of_sum(self) -> tuple[Any, ...]:
        """The operator's options, where the mean's divisor is none of its business."""
        if LOSSES[self.name].family != "softmax":
            return self.options
        ignore_index, label_smoothing, terms, *_ = self.options
        return ignore_index, label_smoothing, terms, None, None

    @property
    def has_labels(self) -> bool:
        """Whether rows have class indices, one of which may be ignored."""
        return LOSSES[self.name].family == "softmax" and not self.target.is_floating_point()

    def operands(self, rows: slice | Tensor) -> Operands:
        """Target, weight and extra of some rows."""
        rowwise = LOSSES[self.name].family in ("softmax", "class_margin")

        def of_rows(operand: Tensor | None, always: bool = False) -> Tensor | None:
            # Of the others, what has a single row, or no dimension for rows, is the same for all.
            if operand is None or not (always or (operand.dim() > 1 and operand.shape[0] > 1)):
                return operand
            if operand.is_sparse:
                begin, end, _ = rows.indices(operand.shape[0]) if isinstance(rows, slice) else (0, 0, 1)
                index = torch.arange(begin, end, device=operand.device) if isinstance(rows, slice) else rows
                return operand.index_select(0, index).to_dense()
            return operand[rows] if isinstance(rows, slice) else operand.index_select(0, rows)

        target = of_rows(self.target, rowwise)
        assert target is not None
        return target, of_rows(self.weight), of_rows(self.extra)

    def divisor(self) -> Tensor:
        """What the reduction divides the sum of all losses by, in float64."""
        family, count = LOSSES[self.name].family, 1
        counted: Tensor | None = None
        if self.reduction == REDUCTION_CODES["sum"]:
            pass
        elif family == "softmax" and self.options[3] is not None:
            normalizer: Tensor = self.options[3]
            return normalizer
        elif self.has_labels:
            counted = self._weights_of_labels()
        elif family == "softmax":
            count = self.logits.numel() // self.logits.shape[1]
        elif family != "pointwise" or self.reduction == BATCH_MEAN:
            count = self.logits.shape[0]
        elif self.name in _MEAN_OVER_WEIGHTS and self.weight is not None:
            counted = self.weight
        elif self.options[1] is not None:
            counted = self.target != self.options[1]
        else:
            count = broadcast(self.logits, self.target, self.extra).numel()
        if counted is not None:
            total: Tensor = counted.sum(dtype=torch.float64)
            return total
        return self.logits.new_full((), count, dtype=torch.float64)

    def _weights_of_labels(self) -> Tensor:
        counts: Tensor = torch.ne(self.target, self.options[0])
        if self.weight is None:
            return counts
        # An ignored class may be none; one out of range raises in the kernel.
        labels = torch.where(counts, self.target.long(), 0).clamp(0, self.weight.shape[0] - 1)
        weights: Tensor = torch.where(counts, self.weight[labels], 0)
        return weights


def plan(loss: str, logits: tuple[torch.Size, torch.dtype, torch.device], **keywords: Any) -> Plan | None:
    """The plan of `loss(logits, **keywords)`; None where the kernels do not take such a call.

    Raises:
        Exception: what the loss itself raises before it looks at numbers.
    """
    shape, dtype, device = logits
    input = outline(shape, dtype, device)
    try:
        getattr(functional, loss)(input, **keywords, backward="plan")
    except Planned as planned:
        name, target, weight, extra, options, reduction = planned.call
        return Plan(name, target, weight, extra, options, reduction, input)
    return None

"""What rows are compared with, as far as one process has it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fused_losses.call import Call
from fused_losses.distributed.shard import Shard, localized, whole
from fused_losses.losses.plans import PLANS
from fused_losses.losses.softmax_outputs import terms_of

NEGLIGIBLE = 2.0**-30
"""What a kernel's targets are multiplied by where only its entropy is to have an effect, since the kernel
multiplies both by the same number. A power of two, so that dividing the entropy by it is exact."""


@dataclass(frozen=True)
class Options:
    """What a user asked for; see `cross_entropy`."""

    shard: Shard
    ignore_index: int
    label_smoothing: float
    reduction: str
    z_loss: float
    entropy: float
    logit_scale: float
    softcap: float | None

    def __post_init__(self) -> None:
        if self.reduction not in ("none", "mean", "sum"):
            raise ValueError(f"{self.reduction} is not a valid value for reduction")
        terms_of(self.z_loss, self.entropy, self.logit_scale, self.softcap)  # which refuses what is no number

    @property
    def maps(self) -> bool:
        """Whether the softmax is of scaled or capped logits."""
        return self.logit_scale != 1 or self.softcap is not None

    def terms(self, entropy: float) -> tuple[float, ...]:
        """The operators' terms; z-losses and their gradients are made of merged numbers instead."""
        return terms_of(0.0, entropy, self.logit_scale, self.softcap)

    def slope(self, logits: Tensor) -> Tensor | float:
        """The derivative of the softmax's logits by those that were given, at the softmax's logits (N)."""
        if self.softcap is None:
            return self.logit_scale
        return self.logit_scale * (1 - (logits / self.softcap) ** 2)


@dataclass(frozen=True)
class Target:
    """What rows are compared with, as far as this process has it.

    Local kernels know only local classes. A row whose class is elsewhere has a stand-in, at which nothing
    special happens: kernels are either given labels with a factor of 0 (or nearly, and are corrected), or
    smooth them away entirely.
    """

    options: Options
    local: Tensor
    """Local labels, or stand-ins for labels elsewhere, (N), int64; or probabilities of local classes
    (N, C_local), floating."""
    owned: Tensor
    """Whether this process has the row's class, (N), bool."""
    counts: Tensor
    """Whether the row is not ignored, (N), bool."""
    weight: Tensor | None
    """A factor for each local class, (C_local)."""
    labels: Tensor | None
    """The rows' classes, numbered over those of all processes, (N); None for probabilities."""

    @staticmethod
    def of(target: Tensor, weight: Tensor | None, options: Options) -> Target:
        """Makes the target of labels (N), or of probabilities of the local classes (N, C_local).

        Raises:
            IndexError: a class out of range, where that can be seen without waiting for a device.
        """
        shard, ignored = options.shard, options.ignore_index
        if weight is not None:
            weight, _ = localized(weight, 0, shard, shard.group)
        if target.is_floating_point():
            target, _ = localized(target, -1, shard, shard.group)
            none = target.new_zeros(target.shape[0], dtype=torch.bool)
            return Target(options, target, none, ~none, weight, None)
        target = whole(target)
        counts = target != ignored
        if target.is_cpu and bool((counts & ((target < 0) | (target >= shard.classes))).any()):
            raise IndexError(f"a class is out of range, which is [0, {shard.classes})")
        own = target.long() - shard.first
        owned = counts & (own >= 0) & (own < shard.size)
        # The kernels ignore -1: a local class may have the number that the user ignores.
        label = torch.where(counts, torch.where(owned, own, 0), -1)
        return Target(options, label, owned, counts, weight, target)

    @property
    def operands(self) -> tuple[Tensor | None, ...]:
        """What may lie in memory of the user's: local, weight and labels."""
        return self.local, self.weight, self.labels

    def rows(self, rows: slice) -> Target:
        """The target of some rows."""
        labels = None if self.labels is None else self.labels[rows]
        return Target(
            self.options, self.local[rows], self.owned[rows], self.counts[rows], self.weight, labels
        )

    @property
    def has_labels(self) -> bool:
        """Whether rows have a class."""
        return not self.local.is_floating_point()

    @property
    def is_soft(self) -> bool:
        """Whether rows have soft targets."""
        return not self.has_labels or self.options.label_smoothing != 0

    @property
    def is_weighted(self) -> bool:
        """Whether the weight of a row's class is known only to the process that has it."""
        return self.has_labels and self.weight is not None

    @property
    def share(self) -> float:
        """What the kernel's targets are multiplied by, since the kernel smooths over local classes alone."""
        e, shard = self.options.label_smoothing, self.options.shard
        smoothed = e * shard.size / shard.classes
        if not self.has_labels:
            return 1 - e + smoothed
        return smoothed if e else NEGLIGIBLE if self.options.entropy else 0.0

    @property
    def smoothing(self) -> float:
        """The kernel's own label smoothing: for labels, 1 or 0."""
        e, shard = self.options.label_smoothing, self.options.shard
        if self.has_labels:
            return 1.0 if e else 0.0
        return e * shard.size / shard.classes / self.share if self.share else 0.0

    def plan(self, logits: Tensor, entropy: float) -> Call:
        """The call of the kernels that make each row's own loss of local logits (N, C_local).

        Raises:
            RuntimeError: kernels do not take such logits, targets or weights.
        """
        options = self.options
        call = PLANS["cross_entropy"](
            logits,
            self.local,
            self.weight if self.is_soft else None,
            ignore_index=-1,
            reduction="none",
            label_smoothing=self.smoothing,
            entropy=entropy,
            logit_scale=options.logit_scale,
            softcap=options.softcap,
        )
        if call is None:
            raise RuntimeError(
                "fused_losses.distributed: no kernels take logits of shape "
                f"{tuple(logits.shape)}, {logits.dtype}, on {logits.device}, with targets of shape "
                f"{tuple(self.local.shape)}, {self.local.dtype}"
            )
        return call

    def mass(self, dtype: torch.dtype) -> Tensor:
        """The sum of each row's local soft targets, (N)."""
        classes = self.options.shard.size
        ones = self.local.new_ones(classes, dtype=dtype)
        weight = ones if self.weight is None else self.weight.to(dtype)
        if self.has_labels:
            each = self.smoothing * weight.sum() / max(1, classes)
            return (self.share * each).expand(self.local.shape[0])
        weighted = self.local if self.weight is None else self.local * self.weight
        probabilities = weighted.sum(1, dtype=dtype)
        each = (1 - self.smoothing) * probabilities + self.smoothing * weight.sum() / max(1, classes)
        return self.share * each

    def zeros_meet_infinity(self, logits: Tensor) -> Tensor:
        """Whether a soft target of 0 meets a logit of -inf, (N) or (), given local logits (N, C_local).

        For probabilities, it is assumed that all logits of a row are -inf, the one case that matters.
        """
        none = logits.new_zeros((), dtype=torch.bool)
        is_zero = none if self.weight is None else self.weight == 0
        if self.has_labels:
            return none if self.weight is None else ((logits.detach() == -torch.inf) & is_zero).any(1)
        if self.options.label_smoothing:
            return is_zero.any()
        return (self.local == 0).any(1) | is_zero.any()

    def weight_of_label(self, dtype: torch.dtype) -> Tensor:
        """The weight of each row's class where this process has it, (N); 0 elsewhere."""
        assert self.weight is not None
        return torch.where(self.owned, self.at_labels(self.weight.to(dtype)), 0)

    def at_labels(self, numbers: Tensor) -> Tensor:
        """The numbers (C_local) or (N, C_local) of local classes at each row's class or its stand-in, (N)."""
        labels = self.local.clamp_min(0)
        if numbers.dim() == 1:
            return numbers[labels]
        return numbers.gather(1, labels.unsqueeze(1)).squeeze(1)

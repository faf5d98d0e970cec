"""What rows are compared with, as far as one process has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fused_losses.distributed.shard import Shard, localized, whole
from fused_losses.functional.cross_entropy import terms_of

LITTLE = 2.0**-30
"""What a kernel's targets are multiplied by where they are to have no effect, and its entropy is to have one:
the kernel multiplies both by the same number. A power of two, so that dividing the entropy by it is exact."""


@dataclass(frozen=True)
class Options:
    """Of a call."""

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
        """Whether the softmax is of other logits than those that are given."""
        return self.logit_scale != 1 or self.softcap is not None

    def terms(self, entropy: float) -> tuple[float, ...]:
        """The operators': z-losses and their gradients are made of merged numbers instead."""
        return terms_of(0.0, entropy, self.logit_scale, self.softcap)

    def slope(self, logits: Tensor) -> Tensor | float:
        """Of the softmax's logits, given these, by those that were given."""
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
    """Of labels, the local ones, and stand-ins; or probabilities of local classes."""
    owned: Tensor
    """Whether this process has the row's class."""
    counts: Tensor
    weight: Tensor | None
    labels: Tensor | None
    """The rows' classes, numbered over all."""

    @staticmethod
    def of(target: Tensor, weight: Tensor | None, options: Options) -> Target:
        """Rows of labels, or of probabilities of the local classes.

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
        # A class of this process that has the number of the ignored one is none of it.
        label = torch.where(counts, torch.where(owned, own, 0), -1)
        return Target(options, label, owned, counts, weight, target)

    def of_rows(self, rows: slice) -> Target:
        """Of some of them."""
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
        """What the kernel's targets are multiplied by: its smoothing is over local classes."""
        e, shard = self.options.label_smoothing, self.options.shard
        of_smoothing = e * shard.size / shard.classes
        if not self.has_labels:
            return 1 - e + of_smoothing
        return of_smoothing if e else LITTLE if self.options.entropy else 0.0

    @property
    def smoothing(self) -> float:
        """The kernel's own: of labels, all of it or nothing."""
        e, shard = self.options.label_smoothing, self.options.shard
        if self.has_labels:
            return 1.0 if e else 0.0
        return e * shard.size / shard.classes / self.share if self.share else 0.0

    def kernel(self, entropy: float) -> tuple[Any, ...]:
        """The operators' target and weight, and their first options."""
        weight = self.weight if self.is_soft else None
        return self.local, weight, -1, self.smoothing, self.options.terms(entropy)

    def mass(self, dtype: torch.dtype) -> Tensor:
        """The sum of each row's local soft targets."""
        classes = self.options.shard.size
        ones = self.local.new_ones(classes, dtype=dtype)
        weight = ones if self.weight is None else self.weight.to(dtype)
        if self.has_labels:
            each = self.smoothing * weight.sum() / max(1, classes)
            return (self.share * each).expand(self.local.shape[0])
        wide = self.local if self.weight is None else self.local * self.weight
        of_probabilities = wide.sum(1, dtype=dtype)
        each = (1 - self.smoothing) * of_probabilities + self.smoothing * weight.sum() / max(1, classes)
        return self.share * each

    def weight_of_label(self, dtype: torch.dtype) -> Tensor:
        """Where this process has the row's class; 0 elsewhere."""
        assert self.weight is not None
        return torch.where(self.owned, self.at_labels(self.weight.to(dtype)), 0)

    def at_labels(self, of_classes: Tensor) -> Tensor:
        """Numbers of local classes, (C) or (N, C), at each row's class or its stand-in."""
        labels = self.local.clamp_min(0)
        if of_classes.dim() == 1:
            return of_classes[labels]
        return of_classes.gather(1, labels.unsqueeze(1)).squeeze(1)

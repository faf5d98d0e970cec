"""The numbers of rows: what one process knows of its classes, what all know, its part of the gradient.

Of a row's target, a process has `hot` at class y if that is its own, and soft targets q of its own classes;
see `csrc/formulas/cross_entropy.h` for the formula, whose sums are merged here.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from fused_losses.distributed.shard import Shard
from fused_losses.ops import OPERATORS
from fused_losses.registry import INPUT_GRADIENT, STATISTICS

_OPERATORS = OPERATORS["cross_entropy"]
_NONE = 0
"""The operators' number of reduction="none"."""


@dataclass(frozen=True)
class Options:
    """Of a call."""

    shard: Shard
    ignore_index: int
    label_smoothing: float
    z_loss: float


@dataclass(frozen=True)
class Target:
    """What rows are compared with, as far as this process has it.

    Local kernels know only local classes. A row whose class is elsewhere has a stand-in, at which nothing
    special happens: kernels are either given labels with a factor of 0, or smooth them away entirely.
    """

    options: Options
    local: Tensor
    """Of labels, the local ones, and stand-ins; or probabilities of local classes."""
    owned: Tensor
    """Whether this process has the row's class."""
    counts: Tensor
    weight: Tensor | None

    @staticmethod
    def of(target: Tensor, weight: Tensor | None, options: Options) -> Target:
        """Rows of labels, or of probabilities of the local classes.

        Raises:
            IndexError: a class out of range, where that can be seen without waiting for a device.
        """
        if target.is_floating_point():
            none = target.new_zeros(target.shape[0], dtype=torch.bool)
            return Target(options, target, none, ~none, weight)
        shard, ignored = options.shard, options.ignore_index
        counts = target != ignored
        if target.is_cpu and bool((counts & ((target < 0) | (target >= shard.classes))).any()):
            raise IndexError(f"a class is out of range, which is [0, {shard.classes})")
        own = target.long() - shard.first
        owned = counts & (own >= 0) & (own < shard.size)
        # A class of this process that has the number of the ignored one is none of it.
        label = torch.where(counts, torch.where(owned, own, 0), -1)
        return Target(options, label, owned, counts, weight)

    def of_rows(self, rows: slice) -> Target:
        """Of some of them."""
        return Target(self.options, self.local[rows], self.owned[rows], self.counts[rows], self.weight)

    @property
    def has_labels(self) -> bool:
        """Whether rows have a class."""
        return not self.local.is_floating_point()

    @property
    def share(self) -> float:
        """What the kernel's soft targets are multiplied by: its smoothing is over local classes."""
        e, shard = self.options.label_smoothing, self.options.shard
        of_smoothing = e * shard.size / shard.classes
        return of_smoothing if self.has_labels else 1 - e + of_smoothing

    @property
    def smoothing(self) -> float:
        """The kernel's own: of labels, all of it or nothing."""
        e, shard = self.options.label_smoothing, self.options.shard
        if self.has_labels:
            return 1.0 if e else 0.0
        return e * shard.size / shard.classes / self.share if self.share else 0.0

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
        if not self.has_labels:
            return self.owned.to(dtype)
        if self.weight is None:
            return self.owned.to(dtype)
        return torch.where(self.owned, self.weight.to(dtype)[self.local.clamp_min(0)], 0)


@dataclass(frozen=True)
class Merged:
    """What all processes know of each row, in float64."""

    reference: Tensor  # near the maximum
    sum: Tensor  # of exponentials, relative to it
    mass: Tensor
    cross: Tensor
    x_y: Tensor
    weight: Tensor  # of the row's class

    @staticmethod
    def joined(parts: list[Merged]) -> Merged:
        """Of chunks of rows."""
        numbers = [[getattr(part, field.name) for part in parts] for field in fields(Merged)]
        return Merged(*(torch.cat(each) for each in numbers))

    def of_rows(self, rows: slice) -> Merged:
        """Of some of them."""
        return Merged(*(getattr(self, field.name)[rows] for field in fields(Merged)))

    @property
    def lse(self) -> Tensor:
        """Log-sum-exps."""
        return self.reference + self.sum.log()

    def losses(self, target: Target) -> Tensor:
        """Of each row; 0 where it does not count."""
        log_sum, hot = self.sum.log(), self.hot(target)
        losses = torch.where(hot != 0, hot * ((self.reference - self.x_y) + log_sum), 0)
        losses = losses + torch.where(self.mass != 0, self.mass * log_sum - self.cross, 0)
        if target.options.z_loss:
            losses = losses + target.options.z_loss * self.lse**2
        return torch.where(target.counts, losses, 0)

    def hot(self, target: Target) -> Tensor:
        """Of each row's class."""
        return (1 - target.options.label_smoothing) * self.weight

    def divisor(self, target: Target) -> Tensor:
        """Of the mean: the weights of the rows' classes, or the number of rows."""
        return self.weight.sum() if target.has_labels else target.counts.sum(dtype=torch.float64)


def local_numbers(logits: Tensor, target: Target) -> Tensor:
    """What other processes need to know of local logits (N, C): (numbers, N)."""
    wide = torch.float64 if logits.dtype is torch.float64 else torch.float32
    rows = logits.shape[0]
    if not target.options.shard.size:
        empty = logits.new_zeros((6, rows), dtype=wide)
        empty[0] = -torch.inf
        return empty[: 6 if _is_soft(target) else 4]
    losses, statistics = _OPERATORS.forward(
        logits,
        target.local,
        target.weight,
        None,
        -1,
        target.smoothing,
        (),
        None,
        None,
        _NONE,
        wide,
        STATISTICS,
    )
    numbers = [*statistics, _at_label(logits, target).to(wide), target.weight_of_label(wide)]
    if _is_soft(target):
        mass = target.mass(wide)
        numbers += [mass, mass * statistics[1].log() - target.share * losses]
    return torch.stack(numbers)


def merge(numbers: Tensor, target: Target) -> Merged:
    """Those of all processes (P, numbers, N), in the order of ranks."""
    reference, sums, x_y, weight, *soft = numbers.double().unbind(1)
    largest = reference.amax(0)
    # Of nothing but -inf, on one process or on all.
    steps = torch.where(reference == largest, 0, reference - largest)
    total = (sums * steps.exp()).sum(0)
    zero = torch.zeros_like(largest)
    mass = cross = zero
    if soft:
        mass = soft[0].sum(0)
        cross = (soft[1] + torch.where(soft[0] != 0, soft[0] * steps, 0)).sum(0)
    return Merged(largest, total, mass, cross, x_y.sum(0), weight.sum(0))


def write_gradient(logits: Tensor, target: Target, merged: Merged, slope: Tensor, into: Tensor) -> None:
    """The gradient of local logits, of losses that are multiplied by `slope`, of each row, in float64."""
    if not logits.numel():
        return
    wide = torch.float64 if logits.dtype is torch.float64 else torch.float32
    hot = merged.hot(target)
    # What p is multiplied by; a kernel has some of it from its own soft targets.
    of_p = hot + merged.mass + 2 * target.options.z_loss * merged.lse
    soft = slope * target.share if _is_soft(target) else torch.zeros_like(slope)
    own = target.mass(torch.float64) if _is_soft(target) else 0
    of_lse = slope * (of_p - own)
    at_label = _at_label(logits, target).double()
    statistics = torch.stack([merged.reference, merged.sum]).to(wide)
    _OPERATORS.backward_into(
        [into],
        False,
        soft.to(wide),
        logits,
        target.local,
        target.weight,
        statistics,
        -1,
        target.smoothing,
        (),
        None,
        of_lse.to(wide),
        _NONE,
        INPUT_GRADIENT,
    )
    if target.has_labels:
        # p - 1 nearly cancels there: in double, and rounded once.
        p = (at_label - merged.reference).exp() / merged.sum
        e, weight = target.options.label_smoothing, merged.weight
        value = slope * (of_p * p - hot - e / target.options.shard.classes * weight)
        places = target.local.clamp_min(0).unsqueeze(1)
        others = into.gather(1, places)
        into.scatter_(
            1, places, torch.where(target.owned.unsqueeze(1), value.unsqueeze(1).to(into.dtype), others)
        )


def _is_soft(target: Target) -> bool:
    return not target.has_labels or target.options.label_smoothing != 0


def _at_label(logits: Tensor, target: Target) -> Tensor:
    if not target.has_labels:
        return logits.new_zeros(logits.shape[0])
    found = logits.detach().gather(1, target.local.clamp_min(0).unsqueeze(1)).squeeze(1)
    return torch.where(target.owned, found, 0)

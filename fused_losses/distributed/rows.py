"""The numbers of rows: what one process knows of its classes, what all know, its part of the gradient.

Of a row's target, a process has `hot` at class y if that is its own, and soft targets q of its own classes;
see `csrc/formulas/cross_entropy.h` for the formula, whose sums are merged here.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from fused_losses.distributed.target import Options, Target
from fused_losses.ops import OPERATORS
from fused_losses.registry import ARGMAX, INPUT_GRADIENT, STATISTICS

_OPERATORS = OPERATORS["cross_entropy"]
_NONE = 0
"""The operators' number of reduction="none"."""


@dataclass(frozen=True)
class Merged:
    """What all processes know of each row, in float64."""

    reference: Tensor  # near the maximum
    sum: Tensor  # of exponentials, relative to it
    moment: Tensor  # the mean of logits, relative to it, under the softmax; 0 where there is no entropy
    mass: Tensor
    cross: Tensor
    x_y: Tensor  # the logit of the row's class
    weight: Tensor  # of that class
    largest: Tensor  # the class of the largest logit; -1 where the row does not count; if asked for
    right: Tensor  # whether that is the target's largest class

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
        log_sum, hot, options = self.sum.log(), self.hot(target), target.options
        losses = torch.where(hot != 0, hot * ((self.reference - self.x_y) + log_sum), 0)
        losses = losses + torch.where(self.mass != 0, self.mass * log_sum - self.cross, 0)
        if options.z_loss:
            losses = losses + options.z_loss * self.lse**2
        if options.entropy:
            losses = losses - options.entropy * (log_sum - self.moment)
        return torch.where(target.counts, losses, 0)

    def hot(self, target: Target) -> Tensor:
        """Of each row's class."""
        return (1 - target.options.label_smoothing) * self.weight

    def divisor(self, target: Target) -> Tensor:
        """Of the mean: the weights of the rows' classes, or the number of rows."""
        return self.weight.sum() if target.has_labels else target.counts.sum(dtype=torch.float64)


def numbers_of(target: Target, largest: bool) -> list[str]:
    """What a process tells the others of each row, by name."""
    names = ["reference", "sum"]
    names += ["moment"] if target.options.entropy else []
    names += ["x_y"] if target.has_labels else []
    names += ["weight"] if target.is_weighted else []
    names += ["mass", "cross"] if target.is_soft else []
    names += ["top", "top_class"] if largest else []
    names += ["likeliest", "likeliest_class"] if largest and not target.has_labels else []
    return names


def local_numbers(logits: Tensor, target: Target, largest: bool = False) -> Tensor:
    """Those of local logits (N, C): (numbers, N)."""
    wide = torch.float64 if logits.dtype is torch.float64 else torch.float32
    names, options = numbers_of(target, largest), target.options
    if not options.shard.size:
        nothing = logits.new_zeros((len(names), logits.shape[0]), dtype=wide)
        for name in {"reference", "top", "likeliest"}.intersection(names):
            nothing[names.index(name)] = -torch.inf
        return nothing
    bits = STATISTICS | (ARGMAX if largest else 0)
    arguments = target.kernel(options.entropy)
    losses, statistics, *top = _OPERATORS.forward(
        logits, *arguments[:2], None, *arguments[2:], None, None, _NONE, wide, bits
    )
    found = dict(zip(("reference", "sum", "moment"), statistics, strict=False))
    masked = statistics[1] == 0  # nothing but -inf, whatever a kernel refers that to
    found["reference"] = torch.where(masked, -torch.inf, statistics[0])
    if target.has_labels:
        found["x_y"] = torch.where(target.owned, _mapped(target.at_labels(logits.detach()), options), 0)
    if target.is_weighted:
        found["weight"] = target.weight_of_label(wide)
    if target.is_soft:
        log_sum = statistics[1].log()
        if options.entropy:
            losses = losses + options.entropy * (log_sum - found["moment"])
        mass = target.mass(wide)
        # Where soft targets meet nothing but -inf, the loss is infinite if another process has anything else.
        cross = mass * log_sum - target.share * losses
        found["mass"], found["cross"] = mass, torch.where(masked & (mass != 0), -torch.inf, cross)
    if largest:
        classes = top[0].clamp_min(0)
        of_class = logits.detach().gather(1, classes.unsqueeze(1)).squeeze(1)
        found["top"], found["top_class"] = (
            _mapped(of_class, options),
            _as_bits(classes + options.shard.first, wide),
        )
        if not target.has_labels:
            likeliest, classes = target.local.max(1)
            found["likeliest"], found["likeliest_class"] = (
                likeliest.to(wide),
                _as_bits(classes + options.shard.first, wide),
            )
    return torch.stack([found[name] for name in names])


def merge(numbers: Tensor, target: Target, largest: bool = False) -> Merged:
    """Those of all processes (P, numbers, N), in the order of ranks."""
    told = dict(zip(numbers_of(target, largest), numbers.unbind(1), strict=True))
    reference, sums = told["reference"].double(), told["sum"].double()
    top = reference.amax(0)
    # Of nothing but -inf, on one process or on all.
    steps = torch.where(reference == top, 0, reference - top)
    sums = sums * steps.exp()
    total = sums.sum(0)
    zero = torch.zeros_like(top)
    moment = mass = cross = x_y = weight = zero
    if "moment" in told:
        moment = torch.where(sums != 0, sums * (told["moment"].double() + steps), 0).sum(0) / total
    if "mass" in told:
        masses = told["mass"].double()
        mass = masses.sum(0)
        cross = (told["cross"].double() + torch.where(masses != 0, masses * steps, 0)).sum(0)
    if "x_y" in told:
        x_y = told["x_y"].double().sum(0)
        weight = told["weight"].double().sum(0) if "weight" in told else target.counts.double()
    first, right = torch.full_like(top, -1, dtype=torch.int64), torch.zeros_like(target.counts)
    if largest:
        first = torch.where(target.counts, _first_largest(told["top"], told["top_class"]), -1)
        labels = target.labels
        if labels is None:
            labels = _first_largest(told["likeliest"], told["likeliest_class"])
        right = target.counts & (first == labels)
    return Merged(top, total, moment, mass, cross, x_y, weight, first, right)


def write_gradient(
    logits: Tensor, target: Target, merged: Merged, slope: Tensor, of_lse: Tensor | None, into: Tensor
) -> None:
    """The gradient of local logits, in float64 until it is written.

    Losses are multiplied by `slope`, of each row, and `of_lse` is the gradient of log-sum-exps.
    """
    if not logits.numel():
        return
    wide = torch.float64 if logits.dtype is torch.float64 else torch.float32
    options, share, hot = target.options, target.share, merged.hot(target)
    # What p is multiplied by; a kernel has some of it from its own targets.
    of_p = hot + merged.mass + 2 * options.z_loss * merged.lse
    own = target.mass(torch.float64) if target.is_soft else share
    added = slope * (of_p - own)
    if of_lse is not None:
        added = added + torch.where(target.counts, of_lse.double(), 0)
    at_label = _mapped(target.at_labels(logits.detach()), options).double() if target.has_labels else None
    statistics = [merged.reference, merged.sum, *([merged.moment] if options.entropy else [])]
    kernel = target.kernel(options.entropy / share if share else 0.0)
    _OPERATORS.backward_into(
        [into],
        False,
        (slope * share).to(wide),
        logits,
        *kernel[:2],
        torch.stack(statistics).to(wide),
        *kernel[2:],
        None,
        added.to(wide),
        _NONE,
        INPUT_GRADIENT,
    )
    if at_label is not None:
        # p - 1 nearly cancels there: in double, and rounded once. So it is at a stand-in.
        relative = at_label - merged.reference
        p = relative.exp() / merged.sum
        weight = target.at_labels(target.weight.double()) if target.weight is not None else 1
        value = slope * (of_p * p - torch.where(target.owned, hot, 0))
        value = value - slope * options.label_smoothing / options.shard.classes * weight
        if options.entropy:
            value = value + slope * options.entropy * torch.where(p != 0, p * (relative - merged.moment), 0)
        if of_lse is not None:
            value = value + of_lse.double() * p
        value = torch.where(target.counts, value * options.slope(at_label), 0)
        into.scatter_(1, target.local.clamp_min(0).unsqueeze(1), value.unsqueeze(1).to(into.dtype))


def _mapped(logits: Tensor, options: Options) -> Tensor:
    """Some logits (N), one of each row, as the softmax has them: by the kernel itself, to the bit."""
    wide = torch.float64 if logits.dtype is torch.float64 else torch.float32
    if not options.maps:
        return logits.to(wide)
    labels = torch.zeros_like(logits, dtype=torch.int64)
    call = labels, None, None, -1, 0.0, options.terms(0.0), None, None, _NONE, wide, STATISTICS
    mapped: Tensor = _OPERATORS.forward(logits.unsqueeze(1), *call)[1][0]
    return mapped


def _as_bits(classes: Tensor, wide: torch.dtype) -> Tensor:
    """Numbers of classes among floats."""
    return classes.view(wide) if wide is torch.float64 else classes.to(torch.int32).view(wide)


def _first_largest(values: Tensor, classes: Tensor) -> Tensor:
    """Of the largest elements that processes have of each row, (P, N), the first class; -1 if all are NaN."""
    numbers = classes.contiguous().view(torch.int64 if classes.dtype is torch.float64 else torch.int32).long()
    none = torch.iinfo(torch.int64).max
    first = torch.where(values == values.amax(0), numbers, none).amin(0)
    return torch.where(first == none, -1, first)

"""The numbers of rows: what one process knows of its classes, what all know, its part of the gradient.

A row's target is `hot` at its class y, which one process has, plus soft targets q, of which each process has
those of its own classes; see `csrc/formulas/cross_entropy.h` for the formula, whose sums are merged here.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from fused_losses.call import Reduction, SoftmaxOptions, accumulate_dtype
from fused_losses.distributed.target import Options, Target
from fused_losses.ops import OPERATORS
from fused_losses.registry import ARGMAX, INPUT_GRADIENT, STATISTICS

_OPERATORS = OPERATORS["cross_entropy"]


@dataclass(frozen=True)
class Merged:
    """What all processes know of each row, in float64."""

    reference: Tensor
    """A number near the maximum of the softmax's logits, which the others are relative to, (N)."""
    sum: Tensor
    """The sum of the exponentials of logits minus the reference, (N)."""
    mean_excess: Tensor
    """The mean of logits minus the reference under the softmax, (N); 0 where there is no entropy."""
    mass: Tensor
    """The sum of soft targets, (N)."""
    cross: Tensor
    """The sum of soft targets times logits minus the reference, (N)."""
    x_y: Tensor
    """The logit of the row's class, (N)."""
    weight: Tensor
    """The weight of the row's class, (N)."""
    largest: Tensor
    """The class of the largest logit, (N), int64, if asked for; -1 where the row does not count."""
    right: Tensor
    """Whether that is the row's class, or the likeliest of its probabilities, (N), bool."""

    @staticmethod
    def joined(parts: list[Merged]) -> Merged:
        """The numbers of all rows, given those of consecutive chunks."""
        numbers = [[getattr(part, field.name) for part in parts] for field in fields(Merged)]
        return Merged(*(torch.cat(each) for each in numbers))

    def rows(self, rows: slice) -> Merged:
        """The numbers of some rows."""
        return Merged(*(getattr(self, field.name)[rows] for field in fields(Merged)))

    @property
    def lse(self) -> Tensor:
        """The log-sum-exp of each row, (N)."""
        return self.reference + self.sum.log()

    def losses(self, target: Target) -> Tensor:
        """The loss of each row, (N); 0 where it does not count."""
        log_sum, hot, options = self.sum.log(), self.hot(target), target.options
        losses = torch.zeros_like(log_sum)
        if target.has_labels:
            losses = hot * ((self.reference - self.x_y) + log_sum)
        if target.is_soft:
            losses = losses + (self.mass * log_sum - self.cross)
        if options.z_loss:
            losses = losses + options.z_loss * self.lse**2
        if options.entropy:
            losses = losses - options.entropy * (log_sum - self.mean_excess)
        return torch.where(target.counts, losses, 0)

    def hot(self, target: Target) -> Tensor:
        """The factor of each row's own class in its target, (N)."""
        return (1 - target.options.label_smoothing) * self.weight

    def divisor(self, target: Target) -> Tensor:
        """What the mean divides by, (): the sum of the weights of the rows' classes, or their number."""
        return self.weight.sum() if target.has_labels else target.counts.sum(dtype=torch.float64)


def numbers_of(target: Target, largest: bool) -> list[str]:
    """What a process tells the others of each row, by name."""
    names = ["reference", "sum"]
    names += ["mean_excess"] if target.options.entropy else []
    names += ["x_y"] if target.has_labels else []
    names += ["weight"] if target.is_weighted else []
    names += ["mass", "cross"] if target.is_soft else []
    names += ["top", "top_class"] if largest else []
    names += ["likeliest", "likeliest_class"] if largest and not target.has_labels else []
    return names


def local_numbers(logits: Tensor, target: Target, largest: bool = False) -> Tensor:
    """The numbers of local logits (N, C_local): (numbers, N), float32 (float64 for float64)."""
    dtype = accumulate_dtype(logits.dtype)
    names, options = numbers_of(target, largest), target.options
    if not options.shard.size:
        nothing = logits.new_zeros((len(names), logits.shape[0]), dtype=dtype)
        for name in {"reference", "top", "likeliest"}.intersection(names):
            nothing[names.index(name)] = -torch.inf
        return nothing
    bits = STATISTICS | (ARGMAX if largest else 0)
    call = target.plan(logits, options.entropy)
    losses, statistics, *top = _OPERATORS.forward(*call.operands, *call.options, call.reduction, dtype, bits)
    found = dict(zip(("reference", "sum", "mean_excess"), statistics, strict=False))
    masked = statistics[1] == 0  # all logits are -inf, and the kernel may have taken any reference
    found["reference"] = torch.where(masked, -torch.inf, statistics[0])
    if target.has_labels:
        found["x_y"] = torch.where(target.owned, _mapped(target.at_labels(logits.detach()), options), 0)
    if target.is_weighted:
        found["weight"] = target.weight_of_label(dtype)
    if target.is_soft:
        log_sum = statistics[1].log()
        if options.entropy:
            losses = losses + options.entropy * (log_sum - found["mean_excess"])
        mass = target.mass(dtype)
        found["mass"], found["cross"] = mass, mass * log_sum - target.share * losses
        # Of -inf alone, and where the class that the kernel multiplies by 0 has -inf, the kernel makes NaN.
        # The loss is infinite if another class is not -inf, here or elsewhere, as 0 times infinity is not.
        infinite = masked
        if target.has_labels:
            infinite = masked | (_mapped(target.at_labels(logits.detach()), options) == -torch.inf)
        cross = torch.where(target.zeros_meet_infinity(logits), torch.nan, -torch.inf) + 0 * found["sum"]
        found["cross"] = torch.where(infinite, cross, found["cross"])
    if largest:
        classes = top[0].clamp_min(0)
        logits_of_classes = logits.detach().gather(1, classes.unsqueeze(1)).squeeze(1)
        found["top"], found["top_class"] = (
            _mapped(logits_of_classes, options),
            _as_bits(classes + options.shard.first, dtype),
        )
        if not target.has_labels:
            likeliest, classes = target.local.max(1)
            found["likeliest"], found["likeliest_class"] = (
                likeliest.to(dtype),
                _as_bits(classes + options.shard.first, dtype),
            )
    return torch.stack([found[name] for name in names])


def merge(numbers: Tensor, target: Target, largest: bool = False) -> Merged:
    """The numbers of rows, merged from those of all processes (P, numbers, N), in the order of ranks."""
    told = dict(zip(numbers_of(target, largest), numbers.unbind(1), strict=True))
    reference, sums = told["reference"].double(), told["sum"].double()
    top = reference.amax(0)
    # Both are -inf where all logits are, on one process or on all.
    steps = torch.where(reference == top, 0, reference - top)
    sums = sums * steps.exp()
    total = sums.sum(0)
    zero = torch.zeros_like(top)
    mean_excess = mass = cross = x_y = weight = zero
    if "mean_excess" in told:
        excess = told["mean_excess"].double() + steps
        mean_excess = torch.where(sums != 0, sums * excess, 0).sum(0) / total
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
    return Merged(top, total, mean_excess, mass, cross, x_y, weight, first, right)


def write_gradient(
    logits: Tensor, target: Target, merged: Merged, slope: Tensor, lse_gradient: Tensor | None, into: Tensor
) -> None:
    """Writes the gradient of local logits, computed in float64 at each row's class.

    Args:
        logits: (N, C_local).
        target: what rows are compared with.
        merged: what all processes know of the rows.
        slope: what the loss of each row is multiplied by, (N), float64.
        lse_gradient: the upstream gradient of log-sum-exps, (N), or None.
        into: where the gradient goes, shaped as logits; may be logits.
    """
    if not logits.numel():
        return
    dtype = accumulate_dtype(logits.dtype)
    options, share, hot = target.options, target.share, merged.hot(target)
    # The kernel multiplies p by the mass of its own targets, but this is what p is to be multiplied by.
    p_factor = hot + merged.mass + 2 * options.z_loss * merged.lse
    own = target.mass(torch.float64) if target.is_soft else share
    added = slope * (p_factor - own)
    if lse_gradient is not None:
        added = added + torch.where(target.counts, lse_gradient.double(), 0)
    at_label = _mapped(target.at_labels(logits.detach()), options).double() if target.has_labels else None
    statistics = [merged.reference, merged.sum, *([merged.mean_excess] if options.entropy else [])]
    call = target.plan(logits, options.entropy / share if share else 0.0)
    assert isinstance(call.options, SoftmaxOptions)
    _OPERATORS.backward_into(
        [into],
        False,
        (slope * share).to(dtype),
        *call.operands[:3],
        torch.stack(statistics).to(dtype),
        *call.options._replace(lse_gradient=added.to(dtype)),
        call.reduction,
        INPUT_GRADIENT,
    )
    if at_label is not None:
        # p - 1 nearly cancels at the class, so it is computed in double and rounded once. A stand-in is
        # overwritten in the same way.
        relative = at_label - merged.reference
        p = relative.exp() / merged.sum
        weight = target.at_labels(target.weight.double()) if target.weight is not None else 1
        value = slope * (p_factor * p - torch.where(target.owned, hot, 0))
        value = value - slope * options.label_smoothing / options.shard.classes * weight
        if options.entropy:
            value = value + slope * options.entropy * torch.where(
                p != 0, p * (relative - merged.mean_excess), 0
            )
        if lse_gradient is not None:
            value = value + lse_gradient.double() * p
        value = torch.where(target.counts, value * options.slope(at_label), 0)
        into.scatter_(1, target.local.clamp_min(0).unsqueeze(1), value.unsqueeze(1).to(into.dtype))


def _mapped(logits: Tensor, options: Options) -> Tensor:
    """Logits (N), one of each row, scaled and capped by the kernel itself, to have the same bits."""
    dtype = accumulate_dtype(logits.dtype)
    if not options.maps:
        return logits.to(dtype)
    labels = torch.zeros_like(logits, dtype=torch.int64)
    given = SoftmaxOptions(-1, 0.0, options.terms(0.0))
    operands = (logits.unsqueeze(1), labels, None, None)
    statistics: Tensor = _OPERATORS.forward(*operands, *given, Reduction.NONE, dtype, STATISTICS)[1]
    return statistics[0]


def _as_bits(classes: Tensor, dtype: torch.dtype) -> Tensor:
    """Classes (N), int64, as the bits of floats, so that one collective carries both."""
    return classes.view(dtype) if dtype is torch.float64 else classes.to(torch.int32).view(dtype)


def _first_largest(values: Tensor, classes: Tensor) -> Tensor:
    """The class (N) of the largest of the processes' values (P, N), the first of equals; -1 for NaN alone."""
    numbers = classes.contiguous().view(torch.int64 if classes.dtype is torch.float64 else torch.int32).long()
    none = torch.iinfo(torch.int64).max
    first = torch.where(values == values.amax(0), numbers, none).amin(0)
    return torch.where(first == none, -1, first)

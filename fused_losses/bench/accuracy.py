"""Judges a result against float64 before anybody may time it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fused_losses.bench.cases import Case, Pass
from fused_losses.bench.providers import LossFn, eager
from fused_losses.bench.timing import fresh, gradients, one_line
from fused_losses.samples import Inputs

# The rule: an error of at most twice eager's in the same dtype, plus a few units in the last place.
# The units are for the cases in which eager happens to round to the exact value.
EAGER_FACTOR = 2
SLACK_ULP = 4

# How torch words, in several types of exceptions, that it has no kernel of a dtype.
NO_KERNEL = "not implemented for"

# Longer calls are not made twice: what a second one would tell, the tests tell.
SLOW_SECONDS = 5.0


@dataclass(frozen=True)
class Verdict:
    """What the comparison with float64 found.

    Attributes:
        problem: why the result must not be timed; empty if it may.
        grad_max_ulp: largest error of a gradient element, in its units in the last place; behind a linear
            layer, in those of the largest element.
        loss_rel_err: relative error of the loss.
        seconds: how long a call took, roughly; None if it raised.
    """

    problem: str = ""
    grad_max_ulp: float | None = None
    loss_rel_err: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Result:
    """Of one call."""

    loss: Tensor
    grads: tuple[Tensor, ...]  # none when only the forward pass is measured


def ulp(reference: Tensor, dtype: torch.dtype) -> Tensor:
    """The unit in the last place that ``dtype`` has at the float64 values of ``reference``."""
    info = torch.finfo(dtype)
    magnitude = reference.abs().clamp_min(info.smallest_normal)
    # frexp counts from [0.5, 1), eps from [1, 2): hence the half.
    exponent = torch.frexp(magnitude).exponent
    return torch.ldexp(torch.full_like(reference, info.eps / 2), exponent)


def run(function: LossFn, inputs: Inputs, pass_: Pass) -> Result:
    """Calls a loss, and unless only the forward pass is measured, its backward."""
    if pass_ == "forward":
        with torch.no_grad():
            return Result(function(*inputs), ())
    mine = fresh(inputs)
    loss = function(*mine)
    return Result(loss.detach(), gradients(loss, mine))


def _as(dtype: torch.dtype, tensors: Sequence[Tensor]) -> Inputs:
    return tuple(t.to(dtype) if t.is_floating_point() else t for t in tensors)


def _kind_mismatch(result: Result, expected: Result) -> str:
    """What is wrong with dtype or shape, compared with eager's result; empty if nothing is."""
    names = ["loss", *(f"gradient {index}" for index in range(len(expected.grads)))]
    pairs = zip((result.loss, *result.grads), (expected.loss, *expected.grads), strict=True)
    for name, (mine, theirs) in zip(names, pairs, strict=True):
        if (mine.dtype, mine.shape) != (theirs.dtype, theirs.shape):
            return f"WRONG {name}: {mine.dtype} {tuple(mine.shape)}, eager has {theirs.dtype}"
    return ""


def exact(case: Case, inputs: Inputs, pass_: Pass) -> Result:
    """Torch's result in float64."""
    if case.head is None:
        return run(eager(case), _as(torch.float64, inputs), pass_)
    loss, grads = case.head.exact(inputs)
    return Result(loss, () if pass_ == "forward" else grads)


def in_kernels_dtype(function: LossFn, inputs: Inputs, pass_: Pass) -> Result:
    """Torch's result; if torch has no kernel of this dtype, what it has in float32, rounded."""
    try:
        return run(function, inputs, pass_)
    except RuntimeError as error:  # NotImplementedError is one
        if NO_KERNEL not in str(error):
            raise
    dtype = inputs[0].dtype
    wide = run(function, _as(torch.float32, inputs), pass_)
    return Result(wide.loss.to(dtype), _as(dtype, wide.grads))


class Judge:
    """Knows the float64 result of a case and how far eager torch is from it."""

    def __init__(self, case: Case, pass_: Pass, pool: Sequence[Inputs]) -> None:
        """Computes the reference on the first inputs of ``pool``."""
        self._pass: Pass = pass_
        self._dtype = case.dtype
        self._inputs, self._other_inputs = pool[:2]
        self._is_head = case.head is not None
        self._exact = exact(case, self._inputs, pass_)
        self._eager = in_kernels_dtype(eager(case), self._inputs, pass_)
        # An ulp at every gradient element, and the largest errors that are accepted.
        self._units = [
            self._unit(exact, theirs.dtype)
            for exact, theirs in zip(self._exact.grads, self._eager.grads, strict=True)
        ]
        self._allowed = self._allowance()

    def _unit(self, exact: Tensor, dtype: torch.dtype) -> Tensor:
        """The unit of every element; of sums of products that nearly cancel, it is the largest element's."""
        return ulp(exact.abs().max() if self._is_head else exact, dtype)

    def _allowance(self) -> Result:
        """The largest error that is accepted, of the loss and of each gradient element."""
        error = (self._eager.loss.double() - self._exact.loss).abs()
        loss = EAGER_FACTOR * error + SLACK_ULP * ulp(self._exact.loss, self._eager.loss.dtype)
        grads = []
        for theirs, exact, unit in zip(self._eager.grads, self._exact.grads, self._units, strict=True):
            worst = self._worst_of_kind((theirs.double() - exact).abs(), unit)
            grads.append(unit.mul(SLACK_ULP).add_(worst, alpha=EAGER_FACTOR))
        return Result(loss, tuple(grads))

    def _worst_of_kind(self, error: Tensor, unit: Tensor) -> Tensor:
        """What eager's largest error among the elements of the same kind means at every element.

        A loss of class indices has two kinds, whose gradients differ by orders of magnitude: one
        must not excuse the other. The target column, p - 1, cancels, so that only its absolute
        error means anything; so do the gradients of the other losses. The other columns, p, do not
        cancel: counted in units in the last place, the error of a likely class does not excuse that
        of the thousands of unlikely ones.
        """
        target = self._inputs[1]
        if self._is_head or target.is_floating_point() or target.shape == error.shape:
            return error.max()
        is_target = torch.zeros_like(error, dtype=torch.bool)
        is_target.scatter_(1, target.unsqueeze(1), True)
        others = unit * (error / unit)[~is_target].max()
        return torch.where(is_target, error[is_target].max(), others)

    def verdict(self, function: LossFn) -> Verdict:
        """Runs ``function`` and compares; whatever it raises is a verdict too."""
        try:
            start = time.perf_counter()
            result = run(function, self._inputs, self._pass)
            seconds = time.perf_counter() - start
            if seconds < SLOW_SECONDS or not self._is_head:
                # A step on other data before the first result is looked at: a buffer that is reused
                # while its owner still holds it shows.
                start = time.perf_counter()
                run(function, self._other_inputs, self._pass)
                seconds = time.perf_counter() - start
        except Exception as error:
            # A long run goes on with the other providers, and names the exception in its table.
            lacking = NO_KERNEL in str(error)
            return Verdict(f"torch has no {self._dtype} kernel" if lacking else one_line(error))
        problem = _kind_mismatch(result, self._eager)
        return Verdict(problem, seconds=seconds) if problem else self._compare(result, seconds)

    def _compare(self, result: Result, seconds: float) -> Verdict:
        error = (result.loss.double() - self._exact.loss).abs()
        relative = (error / self._exact.loss.abs()).item()
        # `not <=` and never `>`: an error of NaN is a failure.
        problems = [] if bool(error <= self._allowed.loss) else [f"loss off by {relative:.1e}"]
        ulps = []
        references = zip(self._exact.grads, self._allowed.grads, self._units, strict=True)
        for mine, (exact, allowed, unit) in zip(result.grads, references, strict=True):
            error = mine.double().sub_(exact).abs_()
            bad = int((~(error <= allowed)).sum())
            if bad:
                problems.append(f"{bad} of {error.numel()} gradient elements off")
            ulps.append(error.div_(unit).max())
        # Not Python's max, which loses a NaN.
        worst = torch.stack(ulps).max().item() if ulps else None
        return Verdict(f"WRONG: {', '.join(problems)}" if problems else "", worst, relative, seconds)

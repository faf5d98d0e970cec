"""Judges a result against float64, by the rule of `tolerance`, before anybody may time it."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fused_losses.bench.cases import Case, Pass
from fused_losses.bench.providers import LossFn, eager
from fused_losses.bench.timing import fresh, gradients, one_line
from fused_losses.bench.tolerance import allowance, ulp
from fused_losses.samples import Inputs

# What torch says, in several types of exceptions, where it has no kernel for a dtype.
NO_KERNEL = "not implemented for"

# Seconds beyond which a call over a head is not made a second time: what that would tell, the tests tell.
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
    """What one call returned: the loss, and a gradient for each input that requires one."""

    loss: Tensor
    grads: tuple[Tensor, ...]  # none when only the forward pass is measured


def run(function: LossFn, inputs: Inputs, pass_: Pass) -> Result:
    """Calls a loss, and unless only the forward pass is measured, its backward."""
    if pass_ == "forward":
        with torch.no_grad():
            return Result(function(*inputs), ())
    copies = fresh(inputs)
    loss = function(*copies)
    return Result(loss.detach(), gradients(loss, copies))


def _as(dtype: torch.dtype, tensors: Sequence[Tensor]) -> Inputs:
    """The tensors, of which floating ones are cast to a dtype."""
    return tuple(t.to(dtype) if t.is_floating_point() else t for t in tensors)


def _kind_mismatch(result: Result, expected: Sequence[tuple[torch.dtype, torch.Size]]) -> str:
    """What is wrong with dtype or shape, compared with those of eager's result; empty if nothing is."""
    names = ["loss", *(f"gradient {index}" for index in range(len(expected) - 1))]
    for name, found, (dtype, shape) in zip(names, (result.loss, *result.grads), expected, strict=True):
        if (found.dtype, found.shape) != (dtype, shape):
            return f"WRONG {name}: {found.dtype} {tuple(found.shape)}, eager has {dtype}"
    return ""


def exact(case: Case, inputs: Inputs, pass_: Pass) -> Result:
    """Torch's result in float64."""
    if case.head is None:
        return run(eager(case), _as(torch.float64, inputs), pass_)
    loss, grads = case.head.exact(inputs)
    return Result(loss, () if pass_ == "forward" else grads)


def in_kernels_dtype(function: LossFn, inputs: Inputs, pass_: Pass) -> Result:
    """Torch's result; if torch has no kernel for the inputs' dtype, its result in float32, rounded."""
    try:
        return run(function, inputs, pass_)
    except RuntimeError as error:  # NotImplementedError is one
        if NO_KERNEL not in str(error):
            raise
    dtype = inputs[0].dtype
    in_float32 = run(function, _as(torch.float32, inputs), pass_)
    return Result(in_float32.loss.to(dtype), _as(dtype, in_float32.grads))


class Judge:
    """Knows the float64 result of a case and how far eager torch is from it.

    Where a batch repeats a part of its rows, the float64 result is the part's, and must hold for each
    repetition.
    """

    def __init__(self, case: Case, pass_: Pass, pool: Sequence[Inputs]) -> None:
        """Computes the reference on the first inputs of ``pool``."""
        self._pass: Pass = pass_
        self._dtype = case.dtype
        self._inputs, self._other_inputs = pool[:2]
        self._is_head = case.head is not None
        self._parts = case.parts
        self._is_sum = case.keywords.get("reduction") in ("sum", "none")
        # p - eps / C may cancel for any class, so that units in the last place mean nothing.
        self._others_cancel = "label_smoothing" in case.keywords
        part = case.part(self._inputs)
        self._target = part[1]
        self._exact = exact(case, part, pass_)
        by_eager = in_kernels_dtype(eager(case), self._inputs, pass_)
        self._kinds = [(x.dtype, x.shape) for x in (by_eager.loss, *by_eager.grads)]
        # The unit in the last place of every gradient element, and the largest errors that are accepted.
        self._units = [
            self._unit(exact, grad.dtype)
            for exact, grad in zip(self._exact.grads, by_eager.grads, strict=True)
        ]
        self._allowed = self._allowance(by_eager)

    def _unit(self, exact: Tensor, dtype: torch.dtype) -> Tensor:
        """The unit in the last place of every element; behind a linear layer, that of the largest element.

        The elements there are sums of products, which may nearly cancel.
        """
        return ulp(exact.abs().max() if self._is_head else exact, dtype)

    def _errors(self, result: Result) -> Iterator[Result]:
        """The absolute errors of each repetition of the part against the float64 result of the part."""
        # A mean divides by the whole batch: gradients are smaller, the loss is the same. `_parts` is a power
        # of two, by which nothing is rounded.
        loss = result.loss.double() / (self._parts if self._is_sum else 1)
        factor = 1 if self._is_sum else self._parts
        pieces = [x.tensor_split(self._parts) for x in result.grads]
        for index in range(self._parts):
            grads = [
                piece[index].double().mul_(factor).sub_(exact).abs_()
                for piece, exact in zip(pieces, self._exact.grads, strict=True)
            ]
            yield Result((loss - self._exact.loss).abs(), tuple(grads))

    def _allowance(self, by_eager: Result) -> Result:
        """The largest error that is accepted, of the loss and of each gradient element."""
        worst: list[Tensor] | None = None
        for error in self._errors(by_eager):
            largest = [self._worst_of_kind(e, u) for e, u in zip(error.grads, self._units, strict=True)]
            worst = largest if worst is None else list(map(torch.maximum, worst, largest))
            loss = error.loss
        grads = [allowance(each, unit) for each, unit in zip(worst or [], self._units, strict=True)]
        return Result(allowance(loss, ulp(self._exact.loss, by_eager.loss.dtype)), tuple(grads))

    def _worst_of_kind(self, error: Tensor, unit: Tensor) -> Tensor:
        """For every element, eager's largest error among the elements of the same kind.

        A loss of labels has two kinds, whose gradients differ by orders of magnitude: one must not excuse the
        other. The label's element, p - 1, nearly cancels, so that only its absolute error means anything; so
        do the gradients of the other losses. The other elements, p, do not cancel: their errors count in
        units in the last place, so that the error of a likely class does not excuse that of thousands of
        unlikely ones.
        """
        target = self._target
        if self._is_head or target.is_floating_point() or target.shape == error.shape:
            return error.max()
        is_target = torch.zeros_like(error, dtype=torch.bool)
        is_target.scatter_(1, target.unsqueeze(1), True)
        unit = torch.ones_like(unit) if self._others_cancel else unit
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
        problem = _kind_mismatch(result, self._kinds)
        return Verdict(problem, seconds=seconds) if problem else self._compare(result, seconds)

    def _compare(self, result: Result, seconds: float) -> Verdict:
        """The verdict on a result whose dtypes and shapes are right."""
        bad = [0] * len(result.grads)
        ulps = []
        for error in self._errors(result):
            for index, (found, allowed, unit) in enumerate(
                zip(error.grads, self._allowed.grads, self._units, strict=True)
            ):
                # `not <=` rather than `>`, so that an error of NaN is a failure.
                bad[index] += int((~(found <= allowed)).sum())
                ulps.append(found.div_(unit).max())
        relative = (error.loss / self._exact.loss.abs()).item()
        problems = [] if bool(error.loss <= self._allowed.loss) else [f"loss off by {relative:.1e}"]
        problems += [
            f"{count} of {gradient.numel()} gradient elements off"
            for count, gradient in zip(bad, result.grads, strict=True)
            if count
        ]
        # Python's max would lose a NaN.
        worst = torch.stack(ulps).max().item() if ulps else None
        return Verdict(f"WRONG: {', '.join(problems)}" if problems else "", worst, relative, seconds)

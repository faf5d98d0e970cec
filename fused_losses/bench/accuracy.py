"""Judges a result against float64 before anybody may time it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as eager

from fused_losses.bench.cases import Case, Inputs, Pass
from fused_losses.bench.providers import LossFn
from fused_losses.bench.timing import fresh, gradient

# The rule: an error of at most twice eager's in the same dtype, plus a few units in the last place.
# The units are for the cases in which eager happens to round to the exact value.
EAGER_FACTOR = 2
SLACK_ULP = 4


@dataclass(frozen=True)
class Verdict:
    """What the comparison with float64 found.

    Attributes:
        problem: why the result must not be timed; empty if it may.
        grad_max_ulp: largest error of a gradient element, in its units in the last place.
        loss_rel_err: relative error of the loss.
    """

    problem: str = ""
    grad_max_ulp: float | None = None
    loss_rel_err: float | None = None


@dataclass(frozen=True)
class _Result:
    loss: Tensor
    grad: Tensor | None  # None when only the forward pass is measured


def ulp(reference: Tensor, dtype: torch.dtype) -> Tensor:
    """The unit in the last place that ``dtype`` has at the float64 values of ``reference``."""
    info = torch.finfo(dtype)
    magnitude = reference.abs().clamp_min(info.smallest_normal)
    # frexp counts from [0.5, 1), eps from [1, 2): hence the half.
    exponent = torch.frexp(magnitude).exponent
    return torch.ldexp(torch.full_like(reference, info.eps / 2), exponent)


def _run(function: LossFn, inputs: Inputs, pass_: Pass) -> _Result:
    if pass_ == "forward":
        with torch.no_grad():
            return _Result(function(*inputs), None)
    mine = fresh(inputs)
    loss = function(*mine)
    return _Result(loss.detach(), gradient(loss, mine))


def _kind_mismatch(name: str, result: Tensor | None, expected: Tensor | None) -> str:
    """What is wrong with dtype or shape, compared with eager's result; empty if nothing is."""
    if result is None or expected is None:
        return ""
    if (result.dtype, result.shape) == (expected.dtype, expected.shape):
        return ""
    return f"WRONG {name}: {result.dtype} {tuple(result.shape)}, eager has {expected.dtype}"


class Judge:
    """Knows the float64 result of a case and how far eager torch is from it."""

    def __init__(self, case: Case, pass_: Pass, pool: Sequence[Inputs]) -> None:
        """Computes the reference on the first inputs of ``pool``."""
        self._pass: Pass = pass_
        self._inputs, self._other_inputs = pool[:2]
        self._function: LossFn = getattr(eager, case.loss)
        exact = tuple(t.double() if t.is_floating_point() else t for t in self._inputs)
        self._exact = _run(self._function, exact, pass_)
        self._eager = _run(self._function, self._inputs, pass_)
        self._allowed = self._allowance(self._eager)

    def _allowance(self, eager_result: _Result) -> _Result:
        """The largest error that is accepted, of the loss and of each gradient element."""
        dtype = eager_result.loss.dtype
        loss_error = (eager_result.loss.double() - self._exact.loss).abs()
        loss = EAGER_FACTOR * loss_error + SLACK_ULP * ulp(self._exact.loss, dtype)
        if eager_result.grad is None or self._exact.grad is None:
            return _Result(loss, None)
        error = (eager_result.grad.double() - self._exact.grad).abs()
        unit = ulp(self._exact.grad, eager_result.grad.dtype)
        worst = self._worst_of_kind(error, unit)
        return _Result(loss, unit.mul_(SLACK_ULP).add_(worst, alpha=EAGER_FACTOR))

    def _worst_of_kind(self, error: Tensor, unit: Tensor) -> Tensor:
        """What eager's largest error among the elements of the same kind means at every element.

        A loss of class indices has two kinds, whose gradients differ by orders of magnitude: one
        must not excuse the other. The target column, p - 1, cancels, so that only its absolute
        error means anything; so do the gradients of the other losses. The other columns, p, do not
        cancel: counted in units in the last place, the error of a likely class does not excuse that
        of the thousands of unlikely ones.
        """
        target = self._inputs[1]
        if target.is_floating_point():
            return error.max()
        is_target = torch.zeros_like(error, dtype=torch.bool)
        is_target.scatter_(1, target.unsqueeze(1), True)
        others = unit * (error / unit)[~is_target].max()
        return torch.where(is_target, error[is_target].max(), others)

    def verdict(self, function: LossFn) -> Verdict:
        """Runs ``function`` and compares; whatever it raises is a verdict too."""
        try:
            result = _run(function, self._inputs, self._pass)
            # A step on other data before the first result is looked at: a buffer that is reused
            # while its owner still holds it shows.
            _run(function, self._other_inputs, self._pass)
        except Exception as error:
            # A long run goes on with the other providers, and names the exception in its table.
            return Verdict(f"{type(error).__name__}: {str(error).strip().split(chr(10))[0]}")
        problem = _kind_mismatch("loss", result.loss, self._eager.loss) or _kind_mismatch(
            "gradient", result.grad, self._eager.grad
        )
        return Verdict(problem) if problem else self._compare(result)

    def _compare(self, result: _Result) -> Verdict:
        error = (result.loss.double() - self._exact.loss).abs()
        relative = (error / self._exact.loss.abs()).item()
        # `not <=` and never `>`: an error of NaN is a failure.
        problems = [] if bool(error <= self._allowed.loss) else [f"loss off by {relative:.1e}"]
        worst = None
        exact, allowed = self._exact.grad, self._allowed.grad
        if result.grad is not None and exact is not None and allowed is not None:
            error = (result.grad.double() - exact).abs()
            worst = (error / ulp(exact, result.grad.dtype)).max().item()
            bad = int((~(error <= allowed)).sum())
            if bad:
                problems.append(f"{bad} of {error.numel()} gradient elements off")
        return Verdict(f"WRONG: {', '.join(problems)}" if problems else "", worst, relative)

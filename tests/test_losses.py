"""Every loss against float64, by every strategy, in every dtype and layout."""

from __future__ import annotations

import pytest
import torch
from cases import DTYPES, Case, all_cases, layouts
from tolerance import assert_as_accurate, results_in_extended_precision
from torch import Tensor

CASES = all_cases()
REDUCTIONS = ("mean", "sum", "none")


def differentiable(case: Case) -> list[str]:
    return ["input", "target"] if case.target.is_floating_point() else ["input"]


LARGEST_UPSTREAM = 0.375 + 0.25 * 6


def upstream_for(loss: Tensor) -> Tensor:
    """Neither 1 nor the same for all elements, and exact in every dtype."""
    steps = torch.arange(loss.numel(), dtype=torch.float64) % 7
    return (0.375 + 0.25 * steps).view(loss.shape).to(loss.dtype)


def loss_and_gradients(function, case: Case, unit_upstream: bool = False, **options) -> list[Tensor]:
    input = case.input.detach().requires_grad_()
    target = case.target.detach()
    if target.is_floating_point():
        target.requires_grad_()
    loss = function(input, target, **case.options, **options)
    of = [input, target] if target.is_floating_point() else [input]
    upstream = torch.ones_like(loss) if unit_upstream else upstream_for(loss)
    return [loss, *torch.autograd.grad(loss, of, upstream)]


def exact_results(case: Case, reduction: str, unit_upstream: bool, dtype: torch.dtype) -> list[Tensor]:
    """In float64; for float64 itself, in something wider."""
    wide = case.cast(torch.float64)
    if dtype is not torch.float64:
        return loss_and_gradients(wide.torchs, wide, unit_upstream, reduction=reduction)
    with torch.no_grad():
        loss = wide.torchs(wide.input, wide.target, **wide.options, reduction=reduction)
    upstream = torch.ones_like(loss) if unit_upstream else upstream_for(loss)
    options = {**wide.options, "reduction": reduction}
    return results_in_extended_precision(case.name, (wide.input, wide.target), options, upstream)


def check(case: Case, dtype: torch.dtype, reduction: str, unit_upstream: bool = False, **options) -> None:
    rounded = case.cast(dtype)
    ours = loss_and_gradients(rounded.ours, rounded, unit_upstream, reduction=reduction, **options)
    eager = loss_and_gradients(rounded.torchs, rounded, unit_upstream, reduction=reduction)
    exact = exact_results(rounded, reduction, unit_upstream, dtype)
    compare(case, ours, eager, exact, dtype, reduction)


def probability_scale(case: Case, mean: bool) -> float:
    """The largest factor of p - q in the gradient: upstream, weight, and the mean's divisor."""
    weight = float(case.options.get("weight", torch.ones(1)).max())
    positions = max(1, case.input.numel() // case.input.shape[1 if case.input.dim() > 1 else 0])
    return LARGEST_UPSTREAM * weight / (positions if mean else 1)


def compare(case: Case, ours, eager, exact, dtype: torch.dtype, name: str) -> None:
    for part, mine, theirs, reference in zip(("loss", "input", "target"), ours, eager, exact, strict=False):
        terms = 0.0
        if case.name == "cross_entropy" and part == "loss":
            terms = 1.0  # the log of the sum
        elif case.name == "cross_entropy" and case.target.is_floating_point() and part == "input":
            terms = probability_scale(case, mean="mean" in name)  # times p - q, each at most 1
        assert_as_accurate(mine, theirs, reference, dtype=dtype, name=f"{part}, {name}", terms=terms)


@pytest.fixture(autouse=True)
def by_kernels_only(monkeypatch):
    monkeypatch.setattr("fused_losses.dispatch.strict", True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(case, dtype):
    for reduction in REDUCTIONS:
        check(case, dtype, reduction)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_recompute(case, dtype):
    for reduction in REDUCTIONS:
        check(case, dtype, reduction, backward="recompute")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_unit_upstream_hands_out_what_the_forward_wrote(case):
    for reduction in ("mean", "sum"):
        check(case, torch.float32, reduction, unit_upstream=True)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_layouts(case, dtype):
    """Input and target lying otherwise in memory, together and each alone."""
    plain = case.cast(dtype)
    inputs = dict(layouts(plain.input))
    targets = dict(layouts(plain.target))
    for reduction in ("mean", "none"):
        eager = loss_and_gradients(plain.torchs, plain, reduction=reduction)
        exact = exact_results(plain, reduction, False, dtype)
        for name in inputs:
            for input, target in (
                (inputs[name], targets.get(name, plain.target)),
                (inputs[name], plain.target),
                (plain.input, targets.get(name, plain.target)),
            ):
                laid = Case(name, case.name, input, target, plain.options)
                ours = loss_and_gradients(laid.ours, laid, reduction=reduction)
                compare(laid, ours, eager, exact, dtype, f"{name}, {reduction}")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_one_and_two_threads_give_the_same_bits(case):
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            results.append(loss_and_gradients(case.cast(torch.float32).ours, case.cast(torch.float32)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a.nan_to_num(nan=7.0), b.nan_to_num(nan=7.0))


def test_long_row_is_shared_by_threads_bit_for_bit():
    logits = torch.randn(1, 300_001, generator=torch.Generator().manual_seed(0))
    case = Case("long", "cross_entropy", logits, torch.tensor([299_999]), {"label_smoothing": 0.1})
    test_one_and_two_threads_give_the_same_bits(case)
    check(case, torch.float32, "sum")


def test_dense_layout_of_the_gradient_follows_the_input():
    input = torch.randn(2, 5, 4, 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    loss = Case("", "cross_entropy", input, torch.zeros(2, 4, 3, dtype=torch.long)).ours(
        input, torch.zeros(2, 4, 3, dtype=torch.long)
    )
    (gradient,) = torch.autograd.grad(loss, input)
    assert gradient.stride() == input.stride()

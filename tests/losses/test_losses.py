"""Every loss against float64, by every strategy, in every dtype and layout."""

from __future__ import annotations

import math

import pytest
import torch
from kit import device
from kit.cases import DTYPES, Case, all_cases, inputs_of, layouts
from kit.device import there
from kit.tolerance import assert_all_as_accurate, loss_and_gradients, references
from torch import Tensor

import fused_losses.functional as L
from fused_losses.registry import LOSSES

CASES = all_cases()

each_case = pytest.mark.parametrize("case", CASES, ids=str)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("by_kernels_only"),
    pytest.mark.filterwarnings(
        "ignore:Using a target size", "ignore:reduction", "ignore:overflow encountered"
    ),
]


def upstream_for(case: Case, reduction: str) -> Tensor:
    """Neither 1 nor the same for all elements, and exact in every dtype."""
    with torch.no_grad():
        loss = case.torchs(*case.operands, **case.options, reduction=reduction)
    steps = torch.arange(loss.numel(), dtype=torch.float64) % 7
    return (0.375 + 0.25 * steps).view(loss.shape)


def check(
    case: Case,
    dtype: torch.dtype,
    reduction: str,
    upstream: Tensor | None = None,
    strategies: tuple[str, ...] = ("fused", "recompute"),
) -> None:
    """By every strategy that leaves the input alone, or some."""
    rounded = case.cast(dtype)
    upstream = upstream_for(rounded, reduction) if upstream is None else upstream
    judged_by = judges(rounded, upstream, reduction)
    for backward in strategies:
        sample = rounded.sample(reduction=reduction, backward=backward)
        ours = loss_and_gradients(rounded.ours, sample, upstream)
        assert_all_as_accurate(case.name, ours, *judged_by, f"{reduction}, {backward}")


def judges(case: Case, upstream: Tensor, reduction: str) -> tuple[list[Tensor], ...]:
    """Torch's results, the exact ones, and the sizes of their terms."""
    eager = loss_and_gradients(case.torchs, case.sample(reduction=reduction), upstream)
    return eager, *references(case.name, case.torchs, case.sample(reduction=reduction), upstream)


# Sizes that fill no vector, larger ones, and an image.
TRAINED = {
    "elements": ((37, 130), (6, 1024)),
    "classes": ((33, 130), (6, 5003), (3, 5, 16, 12)),
    "scores": ((33, 70), (6, 1024)),
    "vectors": ((33, 70), (3, 2049)),
}

# Numbers of 16 bits meet margins of 1 and 0 exactly, where the slope is a matter of convention; not these.
MARGINS = {"hinge_embedding_loss": 0.9371, "margin_ranking_loss": 0.0371}


def fill_free_memory(case: Case) -> None:
    """The memory that the next results are written to holds NaN, and not the results of the call before."""
    tensors = [x for x in case.operands if x.is_floating_point()]
    _ = [torch.full_like(x, math.nan, device=device.device) for x in tensors for _ in range(2)]


@pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
@pytest.mark.parametrize("backward", ("fused", "recompute", "inplace"))
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_strategy(dtype, name, backward, reduction):
    """In a test of its own, on inputs as in training: what a GPU is tried with first."""

    def ours(first: Tensor, *others: Tensor, **options) -> Tensor:
        return getattr(L, name)(first * 1, *others, **options)  # no leaf, which inplace would refuse

    options = {"margin": MARGINS[name]} if name in MARGINS else {}
    for shape in TRAINED[LOSSES[name].shapes]:
        case = Case("", name, inputs_of(name, *shape), options).cast(dtype)
        upstream = upstream_for(case, reduction)
        judged_by = judges(case, upstream, reduction)
        fill_free_memory(case)
        sample = case.sample(reduction=reduction, backward=backward)
        results = loss_and_gradients(there(ours), sample, upstream)
        assert_all_as_accurate(name, results, *judged_by, f"{shape}, {reduction}, {backward}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each_case
def test_values_and_gradients(case, dtype):
    for reduction in case.reductions:
        check(case, dtype, reduction)


@each_case
def test_unit_upstream_hands_out_what_the_forward_wrote(case):
    for reduction in ("mean", "sum"):
        check(case, torch.float32, reduction, torch.ones((), dtype=torch.float64), ("fused",))


# A few numbers are one block of work in any dtype: how they lie, one dtype tells.
FEW = 200
LAID = [
    pytest.param(case, dtype, reduction, id=f"{case}-{dtype}".replace("torch.", ""))
    for case in CASES
    for dtype, reduction in ((torch.float32, "none"), (torch.bfloat16, "mean"))
    if dtype is torch.float32 or max(x.numel() for x in case.operands if isinstance(x, Tensor)) > FEW
]


@pytest.mark.parametrize(("case", "dtype", "reduction"), LAID)
def test_layouts(case, dtype, reduction):
    """Operands lying otherwise in memory, together and each alone."""
    plain = case.cast(dtype)
    laid = [dict(layouts(x)) if isinstance(x, Tensor) else {} for x in plain.operands]
    everywhere = range(len(laid))
    upstream = upstream_for(plain, reduction)
    judged_by = judges(plain, upstream, reduction)
    for name in laid[0]:
        for moved in (everywhere, *({i} for i in everywhere)):
            operands = tuple(laid[i].get(name, x) if i in moved else x for i, x in enumerate(plain.operands))
            other = Case(name, case.name, operands, plain.options)
            ours = loss_and_gradients(other.ours, other.sample(reduction=reduction), upstream)
            assert_all_as_accurate(case.name, ours, *judged_by, f"{name}, {reduction}")


def assert_same_bits_for_any_number_of_threads(case: Case, **options) -> None:
    upstream = upstream_for(case, options.get("reduction", "mean"))
    results = []
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            results.append(loss_and_gradients(case.ours, case.sample(**options), upstream))
    finally:
        torch.set_num_threads(1)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a.nan_to_num(nan=7.0), b.nan_to_num(nan=7.0))


# Elements and rows that threads share, and few rows whose elements they share.
SHARED = {
    "elements": ((200_003,), (7, 30_011)),
    "classes": ((2003, 101), (2, 100_003)),
    "scores": ((2003, 101), (2, 100_003)),
    "vectors": ((2003, 101), (2, 100_003)),
}


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("backward", ("fused", "recompute"))
@pytest.mark.parametrize("name", LOSSES)
def test_threads_that_share_work_give_the_same_bits(name, backward, dtype):
    for shape in SHARED[LOSSES[name].shapes]:
        case = Case("shared", name, inputs_of(name, *shape)).cast(dtype)
        for reduction in case.reductions:
            assert_same_bits_for_any_number_of_threads(case, backward=backward, reduction=reduction)
        if dtype is torch.float32 and backward == "fused":
            check(case, dtype, "sum")


def test_long_row_is_shared_by_threads_bit_for_bit():
    logits = torch.randn(1, 300_001, generator=torch.Generator().manual_seed(0))
    case = Case("long", "cross_entropy", (logits, torch.tensor([299_999])), {"label_smoothing": 0.1})
    assert_same_bits_for_any_number_of_threads(case)
    check(case, torch.float32, "sum")


@pytest.mark.parametrize("name", LOSSES)
def test_dense_layout_of_the_gradient_follows_the_input(name):
    shapes = {"elements": (2, 5, 4, 3), "classes": (2, 5, 4, 3), "scores": (6, 5), "vectors": (6, 5)}
    case = Case("", name, inputs_of(name, *shapes[LOSSES[name].shapes])).cast(torch.float32)
    input = case.operands[0].transpose(0, 1).contiguous().transpose(0, 1)
    loss, gradient, *_ = loss_and_gradients(
        case.ours, Case("", name, (input, *case.operands[1:])).sample(reduction="mean"), torch.ones(())
    )
    assert loss.isfinite() and math.prod(gradient.shape) and gradient.stride() == input.stride()

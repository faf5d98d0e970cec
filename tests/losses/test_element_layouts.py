"""Pointwise losses of more elements than a GPU takes in a turn, laid out as models give them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from kit.cases import Case, inputs_of
from kit.device import there
from kit.tolerance import assert_all_as_accurate, loss_and_gradients
from test_losses import MARGINS, judges, upstream_for
from torch import Tensor

import fused_losses.functional as L
from fused_losses.registry import LOSSES

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("by_kernels_only")]

CLASS_MARGINS = ("multi_margin_loss", "multilabel_margin_loss")
NAMES = [
    name
    for name, loss in LOSSES.items()
    if loss.shapes in ("elements", "scores") and name not in CLASS_MARGINS
]

# Rows shorter than the eight elements that kernels take at once, rows that these cross, and rows of which
# they are a part, aligned and not.
SHAPES = ((1100, 2), (300, 10), (40, 100), (3, 1001), (4, 1024))
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))


def slices(x: Tensor) -> Tensor:
    """The same values, all columns but the first of a wider tensor."""
    return F.pad(x, (1, 0))[:, 1:]


def misaligned(x: Tensor) -> Tensor:
    """The same values, one element after the beginning of their memory."""
    return F.pad(x.flatten(), (1, 0))[1:].view(x.shape)


def transposed(x: Tensor) -> Tensor:
    """The same values, columns side by side."""
    return x.t().contiguous().t()


def check_laid(
    case: Case, laid: tuple[Tensor, ...], reduction: str, what: str, judge: Case | None = None
) -> None:
    """The operands `laid`, of the same values as those of the case, by both strategies."""
    upstream = upstream_for(case, reduction)
    judged_by = judges(judge or case, upstream, reduction)
    other = Case(case.label, case.name, laid, case.options)
    for backward in ("fused", "recompute"):
        ours = loss_and_gradients(other.ours, other.sample(reduction=reduction, backward=backward), upstream)
        assert_all_as_accurate(case.name, ours, *judged_by, f"{what}, {reduction}, {backward}")


def case_of(name: str, shape: tuple[int, int], dtype: torch.dtype) -> Case:
    options = {"margin": MARGINS[name]} if name in MARGINS else {}
    return Case("", name, inputs_of(name, *shape), options).cast(dtype)


@pytest.mark.parametrize("lay", (slices, misaligned, transposed), ids=lambda lay: lay.__name__)
@each_shape
@pytest.mark.parametrize("name", NAMES)
def test_layouts(name: str, shape: tuple[int, int], lay: Callable[[Tensor], Tensor]) -> None:
    for dtype, reduction in ((torch.bfloat16, "sum"), (torch.float32, "none")):
        case = case_of(name, shape, dtype)
        all_laid = tuple(map(lay, case.operands))
        first, *others = case.operands
        check_laid(case, all_laid, reduction, f"all, {dtype}")
        check_laid(case, (first, *map(lay, others)), reduction, f"all but the input, {dtype}")


# More rows and columns than are transposed at once, and neither a multiple of it.
@pytest.mark.parametrize("name", ("mse_loss", "margin_ranking_loss", "gaussian_nll_loss"))
def test_long_rows_that_lie_the_other_way_round(name: str) -> None:
    for shape, dtype in (
        ((37, 1300), torch.float32),
        ((18, 300), torch.bfloat16),
        ((20, 1030), torch.float64),
    ):
        case = case_of(name, shape, dtype)
        x, *others = case.operands
        check_laid(case, (x, *map(transposed, others)), "mean", f"all but the input, {dtype}")
        check_laid(case, (x.t().contiguous().t(), *others), "none", f"the input, {dtype}")


def test_numbers_that_lie_the_other_way_round() -> None:
    x, t = inputs_of("binary_cross_entropy_with_logits", 37, 1300)
    weight, pos_weight = torch.rand(2, 37, 1300, generator=torch.Generator().manual_seed(2)) + 0.5
    numbers = {"weight": transposed(weight), "pos_weight": transposed(pos_weight)}
    for dtypes in ((torch.float32,) * 2, (torch.bfloat16,) * 2, (torch.float64, torch.float32)):
        operands = tuple(each.to(dtype) for each, dtype in zip((x, t), dtypes, strict=True))
        for reduction in ("mean", "none"):
            case = Case("", "binary_cross_entropy_with_logits", operands, numbers)
            check_laid(case, operands, reduction, str(dtypes))


# Besides, packs of eight elements that cross no row, but tiles of 4096 that do.
@pytest.mark.parametrize("shape", (*SHAPES, (250, 40)), ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("binary_cross_entropy_with_logits", ["pos_weight"]),
        ("binary_cross_entropy_with_logits", ["weight"]),
        ("binary_cross_entropy_with_logits", ["pos_weight", "weight"]),
        ("binary_cross_entropy", ["weight"]),
    ],
)
def test_numbers_of_classes_of_rows_and_of_elements(
    name: str, options: list[str], shape: tuple[int, int]
) -> None:
    generator = torch.Generator().manual_seed(1)
    for size in ((shape[1],), (shape[0], 1), shape):
        for dtype, reduction in ((torch.bfloat16, "mean"), (torch.float16, "sum"), (torch.float32, "none")):
            numbers = {x: (torch.rand(size, generator=generator) + 0.5).to(dtype) for x in options}
            case = case_of(name, shape, dtype)
            case = Case("", name, case.operands, numbers)
            check_laid(case, case.operands, reduction, f"{options} {size}, {dtype}")


@each_shape
@pytest.mark.parametrize(
    "name", ("mse_loss", "l1_loss", "binary_cross_entropy_with_logits", "poisson_nll_loss")
)
def test_float32_targets_of_bfloat16(name: str, shape: tuple[int, int]) -> None:
    x, t = case_of(name, shape, torch.bfloat16).operands
    for lay in (torch.clone, slices):
        for reduction in ("mean", "none"):
            case = Case("", name, (x, t.float()))
            check_laid(case, (lay(x), lay(t.float())), reduction, lay.__name__)


@pytest.mark.parametrize("name", ("mse_loss", "kl_div"))
def test_images_whose_targets_have_channels_last(name: str) -> None:
    # Planes of fewer and of more elements than are read in the other direction.
    for shape in ((2, 21, 13, 11), (2, 21, 20, 17)):
        check_channels_last(name, shape)


def check_channels_last(name: str, shape: tuple[int, int, int, int]) -> None:
    x, t = (x.view(shape) for x in inputs_of(name, shape[0], math.prod(shape[1:])))
    case = Case("", name, (x, t)).cast(torch.bfloat16)
    x, t = case.operands
    check_laid(case, (x, t.to(memory_format=torch.channels_last)), "sum", "target")
    check_laid(case, (x.to(memory_format=torch.channels_last), t), "sum", "input")


@pytest.mark.parametrize("ignored", (0.1, -1e-3, 0.3))
def test_ignored_numbers_that_float32_rounds(ignored: float) -> None:
    """The mean divides by the elements that are not ignored, and skips the same ones."""
    generator = torch.Generator().manual_seed(0)
    x, t = torch.randn(2, 3000, generator=generator)
    t = t.sigmoid()
    t[::3] = ignored
    kept = t != torch.tensor(ignored)
    for dtype in (torch.float32, torch.float64):
        mine = there(L.binary_cross_entropy_with_logits)(x.to(dtype), t, ignore_index=ignored)
        torch.testing.assert_close(mine, F.binary_cross_entropy_with_logits(x.to(dtype)[kept], t[kept]))


@pytest.mark.parametrize("beta", (1e-40, 1e-300, 1e39, 1e300))
def test_betas_at_the_ends_of_their_range(beta: float) -> None:
    x = torch.tensor([0.0, 1.0, -3.0], requires_grad=True)
    for reduction in ("none", "sum"):
        mine = there(L.smooth_l1_loss)(x, torch.zeros(3), beta=beta, reduction=reduction)
        judge = F.smooth_l1_loss(x, torch.zeros(3), beta=beta, reduction=reduction)
        torch.testing.assert_close(mine, judge)
        found, right = (torch.autograd.grad(loss.sum(), x)[0] for loss in (mine, judge))
        torch.testing.assert_close(found, right)


@pytest.mark.parametrize("name", ("mse_loss", "l1_loss", "smooth_l1_loss"))
def test_a_single_number_counts_for_the_dtype(name: str) -> None:
    x, number = torch.tensor([0.3, -1.7, 2.2]).bfloat16(), torch.tensor(1.1)
    for operands in ((x, number), (number, x)):
        mine, judge = there(getattr(L, name))(*operands), getattr(F, name)(*operands)
        assert mine.dtype == judge.dtype == torch.float32
        torch.testing.assert_close(mine, judge)

"""Pointwise losses of more elements than a GPU takes in a turn, laid out as models give them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from kit.cases import Case, inputs_of
from kit.tolerance import assert_all_as_accurate, loss_and_gradients
from test_losses import MARGINS, judges, upstream_for
from torch import Tensor

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


@each_shape
@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("binary_cross_entropy_with_logits", "pos_weight"),
        ("binary_cross_entropy_with_logits", "weight"),
        ("binary_cross_entropy", "weight"),
    ],
)
def test_numbers_of_classes_and_of_rows(name: str, option: str, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    for size in ((shape[1],), (shape[0], 1)):
        for dtype, reduction in ((torch.bfloat16, "mean"), (torch.float16, "sum"), (torch.float32, "none")):
            number = (torch.rand(size, generator=generator) + 0.5).to(dtype)
            case = case_of(name, shape, dtype)
            case = Case("", name, case.operands, {option: number})
            check_laid(case, case.operands, reduction, f"{option} {size}, {dtype}")


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
    shape = (2, 21, 13, 11)
    x, t = (x.view(shape) for x in inputs_of(name, 2, 21 * 13 * 11))
    case = Case("", name, (x, t)).cast(torch.bfloat16)
    x, t = case.operands
    check_laid(case, (x, t.to(memory_format=torch.channels_last)), "sum", "target")
    check_laid(case, (x.to(memory_format=torch.channels_last), t), "sum", "input")

"""Infinity, NaN, zeros of either sign, huge and subnormal numbers in every operand: what torch makes of them.

Each element is judged for itself, with no reduction, by torch's results: those in the dtype, or in a wider
one, since torch rounds, and overflows, between its operators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from kit.cases import DTYPES, Case, inputs_of
from kit.tolerance import loss_and_gradients
from torch import Tensor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("by_kernels_only"),
    pytest.mark.filterwarnings("ignore:Using a target size", "ignore:reduction"),
]

INF, NAN = math.inf, math.nan

TINY = 1e-39
"""Subnormal in float32 and bfloat16, 0 in float16."""
HUGE = 1e30
"""Its square is infinite in float32, and itself in float16."""

FAR = (0.0, -0.0, TINY, 0.5, -0.5, 1.0, -1.0, 20.0, -20.0, 120.0, -120.0, HUGE, -HUGE, INF, -INF, NAN)
FEW = (0.0, -0.0, 1.0, -1.0, -20.0, HUGE, INF, -INF, NAN)
TARGETS = (0.0, -0.0, TINY, -TINY, 0.25, 0.5, -0.5, 1.0, -1.0, 1.5, -2.0, 60.0, INF, -INF, NAN)
FACTORS = (0.0, 1.0, 3.0, -1.0)
LOGARITHMS = (0.0, -0.0, TINY, 0.5, -0.5, -1.0, -20.0, -120.0, -HUGE, INF, -INF, NAN)
PROBABILITIES = (0.0, -0.0, TINY, 1e-30, 0.5, 1.0)


WIDER: dict[torch.dtype, tuple[torch.dtype, ...]] = {
    torch.float64: (),
    torch.float32: (torch.float64,),
    torch.bfloat16: (torch.float32, torch.float64),
    torch.float16: (torch.float32, torch.float64),
}


def products(*values: tuple[float, ...]) -> tuple[Tensor, ...]:
    """Every combination of them, an operand each, float64."""
    columns = torch.cartesian_prod(*(torch.tensor(x, dtype=torch.float64) for x in values))
    return columns.contiguous().unbind(1)


def elements() -> Iterator[Case]:
    """Losses of elements, their options, and weights that are not positive, too."""
    for name in ("mse_loss", "l1_loss", "huber_loss"):
        yield Case("", name, products(FAR, FAR))
        *operands, weight = products(FEW, FEW, FACTORS)
        yield Case("weight", name, tuple(operands), {"weight": weight})
    for delta in (0.25, HUGE, INF):
        yield Case(f"delta={delta}", "huber_loss", products(FAR, FAR), {"delta": delta})
    for beta in (0.0, 0.25):
        yield Case(f"beta={beta}", "smooth_l1_loss", products(FAR, FAR), {"beta": beta})
    *operands, weight = products(PROBABILITIES, PROBABILITIES, FACTORS)
    yield Case("weight", "binary_cross_entropy", tuple(operands), {"weight": weight})
    name = "binary_cross_entropy_with_logits"
    yield Case("", name, products(FAR, TARGETS))
    *operands, weight = products(FEW, TARGETS, FACTORS)
    yield Case("weight", name, tuple(operands), {"weight": weight})
    *operands, pos_weight = products(FAR, TARGETS, (*FACTORS, INF))
    yield Case("pos_weight", name, tuple(operands), {"pos_weight": pos_weight})
    *operands, weight, pos_weight = products(FEW, TARGETS, FACTORS, FACTORS)
    yield Case("both", name, tuple(operands), {"weight": weight, "pos_weight": pos_weight})
    name = "multilabel_soft_margin_loss"
    *operands, weight = (x[:, None] for x in products(FAR, TARGETS, FACTORS))
    yield Case("", name, tuple(operands))
    yield Case("weight", name, tuple(operands), {"weight": weight})
    for log_input in (True, False):
        for full in (True, False):
            options = {"log_input": log_input, "full": full}
            yield Case(str(options), "poisson_nll_loss", products(FAR, TARGETS), options)
    variances = (0.0, TINY, 1e-6, 1.0, INF, NAN)
    yield Case("", "gaussian_nll_loss", products(FAR, FEW, variances), {"full": True})
    yield Case("", "kl_div", products(FAR, (*TARGETS, *FAR)))
    yield Case("log_target", "kl_div", products(LOGARITHMS, LOGARITHMS), {"log_target": True})
    for margin in (0.9, INF):
        yield Case(f"{margin=}", "hinge_embedding_loss", products(FAR, TARGETS), {"margin": margin})
        operands = products(FAR, FEW, (1.0, -1.0, 0.0, 0.5, INF, NAN))
        yield Case(f"{margin=}", "margin_ranking_loss", operands, {"margin": margin})


def results(function: Callable[..., Tensor], case: Case, upstream: float, **options: Any) -> list[Tensor]:
    """The loss of each element and its gradients, for the same upstream gradient of all."""
    sample = case.sample(reduction="none", **options)
    return loss_and_gradients(function, sample, torch.full(case.operands[0].shape[:1], upstream))


def shaped(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function, whose losses have one dimension."""
    return lambda *operands, **options: function(*operands, **options).flatten()


def agree(ours: Tensor, theirs: Tensor, size: Tensor) -> Tensor:
    """Where both are the same NaN or infinity, or finite and as near as terms of that size can be."""
    eps = torch.finfo(ours.dtype).eps
    ours, theirs, size = ours.double(), theirs.double(), size.view(-1, *[1] * (ours.dim() - 1))
    near = (ours - theirs).abs() <= 16 * eps * torch.maximum(size, theirs.abs())
    return (ours == theirs) | (ours.isnan() & theirs.isnan()) | (ours.isfinite() & theirs.isfinite() & near)


def check(case: Case, judge: Case, dtype: torch.dtype, upstream: float) -> None:
    """Ours of `case` by torch's of `judge`."""
    rounded = case.cast(dtype)
    tensors = [x for x in (*rounded.operands, *rounded.options.values()) if isinstance(x, Tensor)]
    columns = torch.stack([x.double().abs().reshape(len(x), -1).amax(1) for x in tensors], 1)
    # What terms of sums are made of: products of the finite operands.
    size = torch.where(columns.isfinite(), columns, 0.0).clamp_min(1).prod(1)
    judged = judge.cast(dtype)
    answers = [results(shaped(judge.torchs), judged, upstream)]
    for wider in WIDER[dtype]:
        wide = results(shaped(judge.torchs), judged.cast(wider), upstream)
        answers.append([x.to(dtype) for x in wide])
    for backward in ("fused", "recompute"):
        ours = results(shaped(rounded.ours), rounded, upstream, backward=backward)
        for k, mine in enumerate(ours):
            good = torch.stack([agree(mine, answer[k], size) for answer in answers]).any(0)
            if not good.all():
                row = int((~good).nonzero()[0][0])
                given = [x[row].tolist() for x in tensors]
                right = [answer[k][row].tolist() for answer in answers]
                what = "loss" if k == 0 else f"gradient {k - 1}"
                raise AssertionError(
                    f"{int((~good).sum())} of {good.numel()}, {backward}: {what} of {given} is "
                    f"{mine[row].tolist()} instead of {right}"
                )


ELEMENTS = list(elements())


@pytest.mark.parametrize("upstream", (1.0, 0.0, 0.375))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", ELEMENTS, ids=str)
def test_elements(case, dtype, upstream):
    check(case, case, dtype, upstream)


NUMBERS = (0.0, TINY, 1e-20, 0.3, 1.0, -2.0, 1e15, HUGE, -HUGE, INF, NAN)


@pytest.mark.parametrize("swap", (False, True))
@pytest.mark.parametrize("p", (1.0, 1.5, 2.0, 3.0, 40.0, 0.5, -1.0, INF))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_vectors_of_one_element(dtype, p, swap):
    """The distance is |d| for any p, in torch, too, although |d|^p may be out of range.

    Of gradients, torch's are NaN for some p where |d|^(p - 1) is out of range. Those for p = 2 are of the
    same distance, and right.
    """
    vectors = [x[:, None] for x in products(NUMBERS, NUMBERS, NUMBERS)]
    options = {"swap": swap, "eps": 0.0, "margin": 0.375}
    case, judge = (
        Case("", "triplet_margin_loss", tuple(vectors), {**options, "p": each})
        for each in (p, p if p in (1.0, INF) else 2.0)
    )
    check(case, judge, dtype, 1.0)


@pytest.mark.cpu
@pytest.mark.parametrize("operand", ("input", "target"))
def test_what_is_no_probability_is_refused(operand):
    """By every set of kernels, in the same words; on a device, it would end the process."""
    for bad in (-1e-7, 1 + 2e-7, -TINY, INF, NAN):
        operands = {"input": torch.full((3, 7), 0.5), "target": torch.full((3, 7), 0.25)}
        operands[operand][1, 2] = bad
        with pytest.raises(Exception, match=f"all elements of {operand} should be between 0 and 1"):
            Case("", "binary_cross_entropy", ()).ours(**operands)


def test_confident_logits():
    """Of answers that are as small as e^-|x|, no digits are lost to terms as large as x."""
    x = torch.linspace(-60, 60, 241)
    t, pos_weight = (x > 0).float(), torch.zeros(121)
    for case, k in (
        (Case("", "multilabel_soft_margin_loss", (x[:, None], t[:, None])), 0),
        # The derivative by the target: log(1 - s(x)), as far as the positives' share has no weight.
        (Case("", "binary_cross_entropy_with_logits", (x[:121], t[:121]), {"pos_weight": pos_weight}), 2),
    ):
        exact = results(case.torchs, case.cast(torch.float64), 1.0)[k]
        ours = results(case.ours, case, 1.0)[k]
        torch.testing.assert_close(ours.double(), exact, rtol=4e-7, atol=0)  # 3 units in the last place


@pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
@pytest.mark.parametrize("name", ("multi_margin_loss", "multilabel_margin_loss"))
def test_no_rows(name, reduction):
    """The losses of no rows add up to 0, and so does their mean; torch returns memory that nothing wrote."""
    input, target = inputs_of(name, 6, 4)
    input = input[:0].float().requires_grad_()
    loss = Case("", name, ()).ours(input, target[:0], reduction=reduction)
    assert loss.shape == ((0,) if reduction == "none" else ()) and not loss.any()
    (gradient,) = torch.autograd.grad(loss.sum(), input)
    assert gradient.shape == (0, 4)

"""Losses of every number of bfloat16 and of float16: each element of the results for itself, by float64.

Kernels may compute what is rounded to 16 bits by approximate functions. Here is every argument that these can
meet, subnormal numbers and the last one before infinity included.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from kit.cases import Case
from kit.exact import results_in_extended_precision
from kit.tolerance import fresh, loss_and_gradients, widened
from torch import Tensor

from fused_losses.bench.tolerance import allowance, ulp

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("by_kernels_only"),
    pytest.mark.filterwarnings("ignore:overflow encountered"),
]

HALVES = (torch.bfloat16, torch.float16)


def numbers(dtype: torch.dtype) -> Tensor:
    """All finite numbers of a dtype of 16 bits."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    return every[every.isfinite()]


def probabilities(dtype: torch.dtype) -> Tensor:
    """All from 0 to 1."""
    every = numbers(dtype)
    return every[(every >= 0) & (every <= 1)]


def positive(dtype: torch.dtype) -> Tensor:
    """All from 0 on."""
    every = numbers(dtype)
    return every[every >= 0]


# The loss; for each operand, all of its numbers or the same one for all elements; and options.
Operands = tuple[Callable[[torch.dtype], Tensor] | float, ...]
LOSSES_OF_ALL: dict[str, tuple[str, Operands, dict[str, float]]] = {
    **{f"logits, target {t}": ("binary_cross_entropy_with_logits", (numbers, t), {}) for t in (0, 1, 0.25)},
    **{f"probabilities, target {t}": ("binary_cross_entropy", (probabilities, t), {}) for t in (0, 1, 0.25)},
    **{f"labels, target {t}": ("multilabel_soft_margin_loss", (numbers, t), {}) for t in (0, 1, 0.25)},
    **{f"margin, target {t}": ("soft_margin_loss", (numbers, t), {}) for t in (1, -1)},
    **{f"rates' logarithms, target {t}": ("poisson_nll_loss", (numbers, t), {}) for t in (0, 3)},
    "rates": ("poisson_nll_loss", (positive, 3), {"log_input": False}),
    "counts": ("poisson_nll_loss", (0.5, numbers), {"full": True}),
    "variances": ("gaussian_nll_loss", (1, 0.5, positive), {}),
    "target of a divergence": ("kl_div", (-2, positive), {}),
    "target's logarithms": ("kl_div", (-2, numbers), {"log_target": True}),
    "parabola": ("smooth_l1_loss", (numbers, 0), {"beta": 0.3}),
}


def case_of(label: str, dtype: torch.dtype, target_dtype: torch.dtype) -> Case:
    name, sources, options = LOSSES_OF_ALL[label]
    every = next(source(dtype) for source in sources if callable(source))
    operands = [every if callable(x) else torch.full_like(every, x) for x in sources]
    operands[1] = operands[1].to(target_dtype)
    # Rows of one class, for the loss that has rows.
    shape = (-1, 1) if name == "multilabel_soft_margin_loss" else (-1,)
    return Case(label, name, tuple(x.view(shape) for x in operands), options)


def check(case: Case) -> None:
    """Every element of the loss and of its gradients is as accurate as eager's element."""
    sample = case.sample(reduction="none")
    upstream = torch.ones(len(case.operands[0]))
    eagers = loss_and_gradients(case.torchs, fresh(sample), upstream)
    ours = loss_and_gradients(case.ours, fresh(sample), upstream)
    exact, sizes = results_in_extended_precision(case.name, *widened(sample), upstream)
    for k, (mine, eager, reference, size) in enumerate(zip(ours, eagers, exact, sizes, strict=True)):
        assert mine.dtype == eager.dtype
        judged = reference.isfinite() & (reference.abs() <= torch.finfo(mine.dtype).max)
        error = (mine.double() - reference).abs()
        eager_error = (eager.double() - reference).abs()
        # Where eager overflows, ours may; else the exact result judges alone.
        judged &= eager.isfinite() | (mine != eager)
        eager_error = torch.where(eager_error.isfinite(), eager_error, 0.0)
        allowed = allowance(eager_error, ulp(torch.maximum(size, reference.abs()), mine.dtype))
        wrong = (judged & ~(error <= allowed)).flatten()
        if wrong.any():
            i = int(wrong.nonzero()[0])
            given = [float(x.flatten()[i]) for x in case.operands]
            result, right, theirs = (float(x.flatten()[i]) for x in (mine, reference, eager))
            raise AssertionError(
                f"{int(wrong.sum())} of {len(mine)}: {'gradient' if k else 'loss'} {k} of {given} is "
                f"{result} instead of {right}; eager has {theirs}"
            )


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("label", LOSSES_OF_ALL)
def test_every_number(label, dtype):
    check(case_of(label, dtype, dtype))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("target", (0, 1, 0.25))
def test_every_logit_with_targets_of_float32(target, dtype):
    """The loss is float32, and as accurate, where the gradient of the logits has 16 bits."""
    check(case_of(f"logits, target {target}", dtype, torch.float32))

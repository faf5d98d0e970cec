"""docs/porting.md: the formulas of other kernels, written out, by what the table says of this package."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import fused_losses.functional as L

N, C, Z, SMOOTHING = 8, 11, 0.01, 0.1
LOGITS = torch.randn(N, C, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LABELS = torch.tensor([3, -100, 0, 10, 3, -100, 7, 0])
COUNTS = LABELS != -100
WEIGHT = torch.linspace(0.5, 2, C, dtype=torch.float64)
LOG_P = LOGITS.log_softmax(1)[COUNTS]
NLL = -LOG_P.gather(1, LABELS[COUNTS].unsqueeze(1)).squeeze(1)
LSE = LOGITS.logsumexp(1)[COUNTS]


def assert_is(mine: Tensor, formula: Tensor) -> None:
    torch.testing.assert_close(mine, formula, rtol=1e-12, atol=1e-12)


def test_z_loss_under_class_weights():
    weights = WEIGHT[LABELS[COUNTS]]
    out = L.cross_entropy(LOGITS, LABELS, WEIGHT, return_lse=True)
    by_rows = out.loss + Z * out.lse.square().sum() / COUNTS.sum()
    assert_is(by_rows, (weights * NLL).sum() / weights.sum() + Z * LSE.square().mean())
    by_weights = L.cross_entropy(LOGITS, LABELS, WEIGHT, z_loss=Z)
    assert_is(by_weights, ((weights * NLL).sum() + Z * LSE.square().sum()) / weights.sum())


def test_a_mean_of_nothing():
    nothing = torch.full((N,), -100)
    assert L.cross_entropy(LOGITS, nothing).isnan()
    assert L.cross_entropy(LOGITS, nothing, normalizer=(nothing != -100).sum().clamp_min(1)) == 0


def test_dtypes():
    logits, low = LOGITS.bfloat16(), WEIGHT.bfloat16()
    out = L.cross_entropy(logits, LABELS, z_loss=Z, return_z_loss=True)
    assert (out.loss.dtype, out.z_loss.dtype) == (torch.bfloat16, torch.float32)
    for function in (L.cross_entropy, torch.nn.functional.cross_entropy):
        with pytest.raises(RuntimeError, match="expected scalar type BFloat16 but found Float"):
            function(logits, LABELS, WEIGHT.float())
    with torch.autocast("cpu", torch.bfloat16):
        mine = L.cross_entropy(logits, LABELS, WEIGHT.float(), reduction="none")
    assert mine.dtype is torch.float32
    torch.testing.assert_close(
        mine, L.cross_entropy(logits.float(), LABELS, WEIGHT.float(), reduction="none")
    )
    assert L.cross_entropy(logits, LABELS, low).dtype is torch.bfloat16


def test_accuracy_of_a_sum():
    right = (LOGITS[COUNTS].argmax(1) == LABELS[COUNTS]).sum()
    assert L.cross_entropy(LOGITS, LABELS, reduction="sum", return_accuracy=True).accuracy == right


def test_smoothing_over_the_other_classes():
    others = (-LOG_P.sum(1) - NLL) * SMOOTHING / (C - 1)
    mine = L.cross_entropy(LOGITS, LABELS, label_smoothing=SMOOTHING * C / (C - 1))
    assert_is(mine, ((1 - SMOOTHING) * NLL + others).mean())

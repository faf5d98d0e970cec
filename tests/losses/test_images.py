"""Cross-entropy of images, positions side by side, of few classes and of more."""

from __future__ import annotations

import pytest
import torch
from kit.cases import Case
from test_element_layouts import check_laid

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("by_kernels_only")]

SHAPES = ((2, 2, 64, 64), (2, 3, 32, 64), (1, 19, 127, 33), (3, 32, 40, 8), (2, 33, 40, 8))


@pytest.mark.parametrize("scale", (1, 10))
@pytest.mark.parametrize("label_smoothing", (0, 0.1))
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_values_and_gradients(shape: tuple[int, ...], label_smoothing: float, scale: float) -> None:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(shape, generator=generator) * scale
    labels = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    labels[0, :3] = -100
    for dtype in (torch.bfloat16, torch.float16):
        case = Case("", "cross_entropy", (logits.to(dtype), labels), {"label_smoothing": label_smoothing})
        for reduction in ("none", "mean"):
            check_laid(case, case.operands, reduction, f"{dtype}")

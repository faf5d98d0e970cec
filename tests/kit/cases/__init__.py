"""Inputs that the tests share: every loss, on shapes, layouts and values that break careless kernels."""

from __future__ import annotations

import torch

from kit.cases import classes, elements, vectors
from kit.cases.case import Case, inputs_of, layouts

__all__ = ["DTYPES", "Case", "all_cases", "inputs_of", "layouts"]

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def all_cases() -> list[Case]:
    """In an order that stays the same."""
    return [*classes.cases(), *elements.cases(), *vectors.cases()]

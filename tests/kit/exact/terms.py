"""What a formula results in, and the arithmetic that several formulas share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

EPSILON = np.longdouble(np.float32(1e-12))
"""Torch's, a float in every dtype."""

Terms = np.ndarray | tuple[np.ndarray, ...]
"""An array, or several to be added up that may nearly cancel: a result is known to what their size allows."""


@dataclass
class Exact:
    """The values of reduction="none", and what follows from them."""

    values: Terms
    derivatives: list[Terms]
    """Of the values, with respect to the operands in torch's order; class indices and signs have none."""
    axis: int | None = None
    """That of the operands which the values lack."""
    divisor: Any = None
    """Of the mean, where it is not the number of values."""
    kept: Any = True
    """Where derivatives are not 0 whatever they are multiplied by, 0 / 0 for one."""
    short: int | None = None
    """The operand that lacks the last dimension, so that its derivative is summed over that."""
    least_size: float = 0.0
    """Of the terms of every loss."""


def total(terms: Terms) -> np.ndarray:
    return np.asarray(sum(terms) if isinstance(terms, tuple) else terms)


def size_of(terms: Terms) -> np.ndarray:
    return total(tuple(abs(term) for term in terms) if isinstance(terms, tuple) else abs(terms))


def where(mask: np.ndarray, *terms: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(np.where(mask, term, 0) for term in terms)


def sign(x):
    return (x > 0) * np.longdouble(1) - (x < 0)  # 0 for NaN, as torch's

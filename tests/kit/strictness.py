"""Calls that kernels do not take raise, as with FUSED_LOSSES_STRICT=1, instead of running through torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fused_losses import modes


@contextmanager
def strictly(strict: bool = True) -> Iterator[None]:
    """Within it, such calls raise; without `strict`, they run through torch."""
    token = modes.strict.set(strict)
    try:
        yield
    finally:
        modes.strict.reset(token)


@pytest.fixture
def by_kernels_only():
    """For a whole test: `pytest.mark.usefixtures("by_kernels_only")`."""
    with strictly():
        yield

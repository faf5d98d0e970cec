"""Calls that kernels do not take raise, as with FUSED_LOSSES_STRICT=1, instead of running through torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def strictly(strict: bool = True) -> Iterator[None]:
    """Within it, such calls raise; without `strict`, they run through torch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fused_losses.dispatch.strict", strict)
        yield


@pytest.fixture
def by_kernels_only():
    """For a whole test: `pytest.mark.usefixtures("by_kernels_only")`."""
    with strictly():
        yield

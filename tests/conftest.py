"""Counts the samples that conformance tests compared, and prints the count."""

from __future__ import annotations

from collections import Counter

import pytest

_SAMPLES: pytest.StashKey[Counter[str]] = pytest.StashKey()


def pytest_configure(config):
    config.stash[_SAMPLES] = Counter()


@pytest.fixture(scope="session")
def sample_counts(request):
    """Samples by what was done with them; a test adds to it."""
    return request.config.stash[_SAMPLES]


def pytest_terminal_summary(terminalreporter, config):
    counts = config.stash[_SAMPLES]
    if counts:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
        terminalreporter.write_line(f"torch's own samples: {sum(counts.values())} ({kinds})")

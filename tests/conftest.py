"""What tests share: a single thread, and the count of the samples that conformance tests compared."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

_SAMPLES: pytest.StashKey[Counter[str]] = pytest.StashKey()


@pytest.fixture(scope="module")
def one_thread():
    """Where samples are too small for more, and threads that wait for each other take most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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

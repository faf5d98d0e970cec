"""What tests share: a single thread each, and the count of the samples that conformance tests compared."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

_SAMPLES: pytest.StashKey[Counter[str]] = pytest.StashKey()
_COUNTS = "torch's own samples"  # as workers send them


def pytest_configure(config):
    config.stash[_SAMPLES] = Counter()
    # Tests run side by side, one process per core; those that are about threads ask for more.
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def sample_counts(request):
    """Samples by what was done with them; a test adds to it."""
    return request.config.stash[_SAMPLES]


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput[_COUNTS] = dict(session.config.stash[_SAMPLES])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """Of a worker that is done, in the process that waits for all."""
    node.config.stash[_SAMPLES].update(getattr(node, "workeroutput", {}).get(_COUNTS, {}))


def pytest_terminal_summary(terminalreporter, config):
    counts = config.stash[_SAMPLES]
    if counts:
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
        terminalreporter.write_line(f"{_COUNTS}: {sum(counts.values())} ({kinds})")

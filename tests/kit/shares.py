"""FUSED_LOSSES_TEST_SHARE=7: about a seventh of the tests, where all of them would take too long."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable


def _hash(name: str) -> int:
    """The same in every process, which Python's own hash is not."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def share_of(names: Iterable[str], share: int) -> set[str]:
    """Those of the tests' names whose hashes `share` divides; and of each function at least one case.

    So a new case changes nothing for other functions, and in its own at most which case is the only one.
    """
    cases: dict[str, list[str]] = {}
    for name in names:
        cases.setdefault(name.partition("[")[0], []).append(name)
    chosen = ([name for name in some if _hash(name) % share == 0] for some in cases.values())
    return {
        name
        for some, kept in zip(cases.values(), chosen, strict=True)
        for name in kept or [min(some, key=_hash)]
    }

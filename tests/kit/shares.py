"""FUSED_LOSSES_TEST_SHARE=7: about a seventh of the tests, where all of them would take too long."""

from __future__ import annotations

import hashlib


def is_chosen(name: str, share: int) -> bool:
    """Whether the test of this name is in the part. The name alone decides, so other tests change nothing."""
    # Not Python's hash, which is another one in every process.
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % share == 0

"""How the resident memory of this process grows, looked at from time to time (Linux)."""

from __future__ import annotations

import os

NOISE = 24.0
"""MiB by which looks at a process that loses nothing differ: what malloc keeps of freed tensors, and three
buffers of the largest steps (8 MiB)."""


class Growth:
    """Looks at resident memory. The first half of them is a process that is still warming up."""

    def __init__(self) -> None:
        self.looks: list[float] = []

    def look(self) -> float:
        """Resident memory now, in MiB."""
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[1])
        self.looks.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
        return self.looks[-1]

    @property
    def mebibytes(self) -> float:
        """By how much the largest look of the second half exceeds that of the first; 0 of fewer than two."""
        half = len(self.looks) // 2
        return max(self.looks[half:]) - max(self.looks[:half]) if half else 0.0

    @property
    def is_a_leak(self) -> bool:
        return self.mebibytes > NOISE

    def __str__(self) -> str:
        return f"resident memory grew by {self.mebibytes:.1f} MiB in the second half"

"""FUSED_LOSSES_TEST_SHARE: a name alone decides whether its test runs, so a new test changes no other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from kit.shares import is_chosen

TESTS = Path(__file__).parents[1]
NAMES = [f"tests/losses/test_losses.py::test_layouts[cross_entropy-{i}x7-float32]" for i in range(7000)]


@pytest.mark.parametrize("share", (1, 2, 7, 100))
def test_a_share_is_about_as_large_as_it_says(share):
    expected = len(NAMES) / share
    # Four standard deviations of a fair choice.
    assert abs(sum(is_chosen(name, share) for name in NAMES) - expected) <= 4 * expected**0.5


def test_every_process_chooses_the_same():
    """Whatever the seed of Python's own hash is, and whichever tests there are besides."""
    code = (
        "import sys; from kit.shares import is_chosen; print(*(x for x in sys.argv[1:] if is_chosen(x, 7)))"
    )
    some = [f"test_{i}" for i in range(70)]
    for seed, names in (("1", some), ("2", some[::-1]), ("3", ["test_new", *some])):
        done = subprocess.run(
            [sys.executable, "-c", code, *names],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(TESTS)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert {*done.stdout.split()} - {"-c", "test_new"} == {name for name in some if is_chosen(name, 7)}

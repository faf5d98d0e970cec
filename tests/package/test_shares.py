"""FUSED_LOSSES_TEST_SHARE: hashes of names decide which tests run, so a new test changes no other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from kit.shares import share_of

TESTS = Path(__file__).parents[1]
CASES = [f"losses/test_losses.py::test_layouts[cross_entropy-{i}x7-float32]" for i in range(7000)]
OTHERS = [f"losses/test_losses.py::test_{i}" for i in range(50)]


@pytest.mark.parametrize("share", (1, 2, 7, 100))
def test_a_share_is_about_as_large_as_it_says(share):
    expected = len(CASES) / share
    # Four standard deviations of a fair choice.
    assert abs(len(share_of(CASES, share)) - expected) <= 4 * expected**0.5


def test_a_new_test_changes_nothing_for_the_others():
    before = share_of(CASES, 7)
    new = "losses/test_losses.py::test_layouts[new]"
    assert share_of([new, *CASES], 7) - {new} == before
    assert share_of([*OTHERS, *CASES], 7) - {*OTHERS} == before
    assert share_of(CASES[::-1], 7) == before


def test_of_each_function_there_is_at_least_one_case():
    assert share_of(OTHERS, 7) == {*OTHERS}
    few = [f"{name}[{i}]" for name in OTHERS for i in range(3)]
    chosen = share_of(few, 1000)
    assert {name.partition("[")[0] for name in chosen} == {*OTHERS} and len(chosen) < 60


def test_every_process_chooses_the_same():
    code = "import sys; from kit.shares import share_of; print(*sorted(share_of(sys.argv[1:], 7)))"
    some = CASES[:100]
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code, *some],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(TESTS)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.split() == sorted(share_of(some, 7))

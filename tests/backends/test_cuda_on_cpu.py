"""CUDA kernels run on the CPU, and what is wrong with them is found."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "cuda_on_cpu"

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Without a sanitizer, and with one."""
    folder = tmp_path_factory.mktemp("planted")
    flags = ["-std=c++20", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-x", "c++"]
    made = {}
    for name, more in (("plain", []), ("sanitized", ["-fsanitize=address"])):
        made[name] = folder / name
        subprocess.run(["g++", *flags, *more, FOLDER / "planted.cu", "-o", made[name]], check=True)
    return made


def run(program, case, seed=0):
    done = subprocess.run(
        [program, case],
        env={**os.environ, "FUSED_LOSSES_CUDA_SEED": str(seed)},
        capture_output=True,
        text=True,
        check=False,
    )
    # AddressSanitizer announces that it does not trust those who switch stacks.
    return done.returncode, done.stdout or done.stderr


def test_races_show(programs):
    found = {run(programs["plain"], "race", seed)[1] for seed in range(3)}
    assert len(found) > 1 and "0 wrong\n" not in found


@pytest.mark.parametrize("case", ("no race", "sum"))
@pytest.mark.parametrize("program", ("plain", "sanitized"))
def test_what_is_right_stays_right(programs, program, case):
    for seed in range(3):
        assert run(programs[program], case, seed) == (0, "0 wrong\n")


@pytest.mark.parametrize("case", ("bounds", "shared bounds"))
def test_accesses_out_of_bounds_are_found(programs, case):
    status, text = run(programs["sanitized"], case)
    assert status and "heap-buffer-overflow" in text


def test_launches_are_handed_to_those_who_ask(programs):
    assert run(programs["plain"], "taken") == (0, "0 wrong\n")


def test_misaligned_accesses_and_deadlocks_are_found(programs):
    assert run(programs["plain"], "misaligned") == (1, "a misaligned access\n")
    status, text = run(programs["plain"], "deadlock")
    assert status == 1 and "deadlock: 32 threads wait at a barrier, 32 at a warp operation" in text

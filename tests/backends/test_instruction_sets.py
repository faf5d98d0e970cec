"""Every CPU library that is built and runs here gives the results that the one in use gives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fused_losses import backends

TESTS = Path(__file__).parents[1]
FILES = (
    "losses/test_losses.py",
    "losses/test_bad_input*.py",
    "losses/test_extensions.py",
    "backends/test_vec_math.py",
)
USABLE = [name for name in backends.usable_instruction_sets() if name in backends.built_cpu_libraries()]
OTHERS = [name for name in USABLE if f"_cpu_{name}.so" != backends.cpu_library.name]


def run(instruction_set: str, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": instruction_set, **variables}
    return subprocess.run(
        [sys.executable, *command],
        env=environment,
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", USABLE)
def test_torch_s_variable_chooses_the_library(name):
    code = "import fused_losses; from fused_losses import backends; print(backends.cpu_library.name)"
    assert run(name, "-c", code).stdout.strip() == f"_cpu_{name}.so"


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_values_and_bad_input(name):
    files = [str(file) for pattern in FILES for file in sorted(TESTS.glob(pattern))]
    # Strategies for an upstream gradient of 1 are Python's matter, and the same for every set.
    chosen = "not layouts and not threads and not float16 and not float64 and not unit_upstream"
    command = ("-m", "pytest", "-n0", "--tb=line", "-k", chosen, *files)
    # The sources are the same for every set: half of the tests meet each line of them.
    done = run(name, *command, FUSED_LOSSES_TEST_SHARE="2")
    assert done.returncode == 0, done.stdout[-3000:]
    print(f"{name}: {done.stdout.strip().splitlines()[-1]}")


def test_without_a_library_losses_run_through_torch():
    code = (
        "import logging, pathlib, torch\n"
        "logging.basicConfig()\n"
        "exists = pathlib.Path.exists\n"
        "pathlib.Path.exists = lambda path: '_cpu_' not in path.name and exists(path)\n"
        "import fused_losses.functional as L\n"
        "from fused_losses import devices\n"
        "x = torch.randn(4, 3, requires_grad=True)\n"
        "L.cross_entropy(x, torch.tensor([0, 1, 2, 0])).backward()\n"
        "assert x.grad is not None and 'cpu' not in devices.table()\n"
    )
    done = run("default", "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("no CPU library") == 1

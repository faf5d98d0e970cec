"""Environments that have less: the oldest torch, and a machine without the packages of the extras."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from kit import older_torch
from torch_symbols import C_INTERFACE, LIBRARIES, has_nm, oldest, symbols

import fused_losses

TESTS = Path(__file__).parents[1]
BUILT = sorted(Path(fused_losses.__file__).parent.glob("*.so"))
CPLUSPLUS = re.compile(r"_ZNK?(2at|3c10|5torch)\w*")
"""Torch's C++ interface, which is another in every version."""

EXTRAS = (
    "accelerate",
    "expecttest",
    "hypothesis",
    "matplotlib",
    "rich",
    "sphinx",
    "transformers",
    "typer",
    "yaml",
)
WITH_EXTRAS = {
    "test_bench.py": "typer",
    "test_bench_commands.py": "typer",
    "test_bench_gpu.py": "typer",
    "test_bench_gpu_commands.py": "typer",
    "test_bench_gpu_workers.py": "typer",
    "test_conformance.py": "expecttest",
    "test_conformance_errors.py": "expecttest",
    "test_conformance_transforms.py": "expecttest",
    "test_linear_samples.py": "expecttest",
    "test_properties.py": "hypothesis",
    "test_transformers.py": "transformers",
    "test_transformers_heads.py": "transformers",
    "test_tritonbench.py": "typer",
    "test_workflows.py": "yaml",
}
"""Files that are of no use without a package, and the one that each asks for first."""


@pytest.mark.skipif(not has_nm(), reason="there is no nm (binutils), which reads symbols")
@pytest.mark.parametrize("library", BUILT, ids=lambda path: path.name.partition(".")[0])
def test_libraries_need_what_the_oldest_torch_has(library):
    needed = symbols(library, "undefined")
    interface = {name for name in needed if C_INTERFACE.fullmatch(name)}
    assert library.name.startswith("_C.") != bool(interface)
    there = oldest("libtorch_cpu") | (oldest("libtorch_cuda") if library.name == "_cuda.so" else set())
    assert not interface - there
    assert not [name for name in needed if CPLUSPLUS.fullmatch(name)]


def test_the_lists_are_of_whole_libraries():
    """One function of each kind that libraries use: threads, tensors, registration; guards and streams."""
    cpu, cuda = map(oldest, LIBRARIES)
    assert {"torch_parallel_for", "aoti_torch_empty_strided", "torch_library_impl"} <= cpu
    assert {"aoti_torch_create_cuda_guard", "aoti_torch_get_current_cuda_stream"} <= cuda
    assert "torch_exception_get_what_without_backtrace" not in cpu | cuda  # of torch 2.13


@pytest.mark.parametrize(
    ("name", "operands", "options"),
    (
        ("hinge_embedding_loss", ([1.0, 2.0], [-1.0, -1.0]), {}),
        ("margin_ranking_loss", ([1.0, 2.0], [1.5, 1.5], [1.0, -1.0]), {"margin": -0.5}),
        ("cosine_embedding_loss", ([[1.0, 0.0]], [[0.0, 1.0]], [-1.0]), {}),
        ("triplet_margin_loss", ([[3.0, 0.0]], [[3.0, 1.0]], [[0.0, 0.0]]), {"margin": 2.0, "eps": 0.0}),
    ),
)
def test_at_a_kink_gradients_are_those_of_torch_2_14(name, operands, options):
    """Which are 0; before 2.14, torch's were the slope's."""
    x, *others = map(torch.tensor, operands)
    gradients = []
    for package in (fused_losses.functional, torch.nn.functional):
        leaf = x.clone().requires_grad_()
        loss = getattr(package, name)(leaf, *others, **options, reduction="sum")
        gradients += torch.autograd.grad(loss, leaf)
    assert not loss.any() and not gradients[0].any()
    assert gradients[1].any() == (older_torch.TORCH < (2, 14))


def test_squared_errors_from_integers_have_a_gradient():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    fused_losses.functional.mse_loss(x, torch.tensor([0, 4]), reduction="sum").backward()
    assert x.grad.tolist() == [2.0, -4.0]


def test_without_extras_the_other_files_are_collected():
    """A file that cannot be collected would end the run before its first test."""
    options = ["-p", "xdist", "-n0", "--collect-only", "-q", "-rs"]
    code = f"import sys, pytest; sys.modules |= dict.fromkeys({EXTRAS}); sys.exit(pytest.main({options}))"
    # Some of the packages are plugins of pytest, too.
    package = str(Path(fused_losses.__file__).parents[1])
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": package}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=TESTS, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    skipped = re.findall(r"SKIPPED .*?(test_\w+\.py):\d+: could not import '(\w+)'", done.stdout)
    assert dict(skipped) == WITH_EXTRAS
    collected = set(re.findall(r"(test_\w+\.py): \d+", done.stdout))
    assert collected == {path.name for path in TESTS.glob("*/test_*.py")} - set(WITH_EXTRAS)

"""Which library serves the CPU, which GPUs the CUDA library serves, and what a fall-back says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import fused_losses
from fused_losses import backends, devices, info
from fused_losses.architectures import serve


@pytest.mark.parametrize(
    ("built", "capability", "serves"),
    [
        ("9.0", (9, 0), True),
        ("8.0", (8, 6), True),  # machine code of the same major version
        ("8.6", (8, 0), False),
        ("8.0", (9, 0), False),
        ("10.0", (12, 0), False),
        ("10.0+PTX", (12, 0), True),
        ("10.0+PTX", (9, 0), False),
        ("8.6+PTX", (8, 0), False),
        ("9.0a", (9, 0), True),
        ("9.0a+PTX", (10, 0), False),
        ("10.0f", (10, 3), True),
        ("10.0f+PTX", (12, 0), False),
        ("Hopper", (7, 5), True),  # a name: the launch will tell
    ],
)
def test_what_runs_where(built, capability, serves):
    assert serve([built], capability) is serves
    assert serve(["3.5", built], capability) is serves


@pytest.fixture
def gpus(monkeypatch):
    """A CUDA library for two architectures on GPUs that are not there; gpus(capability, ...) finds them."""
    monkeypatch.setattr(devices, "compiled", {**devices.compiled, "cuda": devices.CUDA})
    monkeypatch.setattr(backends, "cuda_library_rests", None)
    monkeypatch.setattr(backends, "_cuda_architectures", lambda: ["8.0", "9.0"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")

    def find(*capabilities):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
        backends._check_gpus()

    yield find
    monkeypatch.undo()
    backends._register_or_remove_triton()


def test_gpus_that_the_library_was_built_for(gpus):
    with warnings.catch_warnings(action="error"):
        gpus((8, 6), (9, 0))
    assert devices.kernels_for("cuda") == devices.CUDA
    assert info._cuda_library() == "loaded"


def test_a_gpu_that_it_was_not_built_for(gpus):
    """Triton serves all of them, and says why, once."""
    with pytest.warns(UserWarning, match="CUDA library") as caught:
        gpus((9, 0), (12, 0), (7, 5))
    (warning,) = caught
    assert "built for 8.0, 9.0, but GPU 1 is 12.0; Triton serves them" in str(warning.message)
    assert "12.0 in TORCH_CUDA_ARCH_LIST" in str(warning.message)
    assert devices.kernels_for("cuda") == "Triton"
    assert "GPU 1 is 12.0" in info._cuda_library()


def test_a_gpu_that_no_one_has_kernels_for(gpus, monkeypatch):
    monkeypatch.setattr(backends, "has_triton", lambda: False)
    with pytest.warns(UserWarning, match="torch serves them"):
        gpus((7, 5))
    assert "cuda" not in devices.table()


def test_gpus_are_looked_at_when_cuda_is_initialised(monkeypatch, tmp_path):
    """Not before: a process that has initialised CUDA cannot fork."""
    (tmp_path / "_cuda.so").touch()
    monkeypatch.setattr(backends, "__file__", str(tmp_path / "backends.py"))
    monkeypatch.setattr(devices, "compiled", {})
    monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
    queued = []
    monkeypatch.setattr(torch.cuda, "_lazy_call", queued.append)
    looked = []
    monkeypatch.setattr(backends, "_check_gpus", lambda: looked.append(1))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    backends._load_cuda_library()
    assert queued == [backends._check_gpus] and not looked
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    backends._load_cuda_library()
    assert looked == [1]


def test_triton_registers_while_cuda_is_initialised():
    """Torch holds its lock then, for which nothing that is imported or registered may wait."""
    if not backends.has_triton():
        pytest.skip("Triton is not installed")
    code = (
        "import torch, fused_losses\n"
        "from fused_losses import backends\n"
        "with torch.cuda._initialization_lock:\n"
        "    assert backends._register_triton() is not None\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


PACKAGE = Path(fused_losses.__file__).parent
BUILT = backends.built_cpu_libraries()


@pytest.fixture
def installation(tmp_path):
    """installation(*sets): a copy of the package with these CPU libraries, or empty files."""

    def make(*instruction_sets):
        shutil.copytree(
            PACKAGE, tmp_path / "fused_losses", ignore=shutil.ignore_patterns("*.so", "__pycache__")
        )
        for name in instruction_sets:
            path = tmp_path / "fused_losses" / f"_cpu_{name}.so"
            path.symlink_to(BUILT[name]) if name in BUILT else path.touch()
        return tmp_path

    return make


def said_at_import(folder, **environment):
    """What warnings a process shows that imports the package, twice, and computes a loss."""
    code = (
        "import sys, torch, fused_losses, fused_losses.functional as L\n"
        "assert fused_losses.__file__.startswith(sys.argv[1])\n"
        "fused_losses.backends.load()\n"
        "x = torch.ones(3, requires_grad=True)\n"
        "L.mse_loss(x, torch.zeros(3)).backward()\n"
        "assert x.grad.tolist() == [torch.tensor(2 / 3)] * 3\n"
    )
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("FUSED_", "TRITON_"))}
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=folder,
        env={**inherited, **environment, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


USABLE = [name for name in backends.usable_instruction_sets() if name in BUILT]


def test_nothing_is_said_where_a_library_fits(installation):
    assert USABLE
    assert "fused_losses:" not in said_at_import(installation(USABLE[0]))


@pytest.mark.parametrize(
    ("instruction_sets", "environment", "said"),
    [
        ((), {}, "no CPU library was built.*Install again: pip install"),
        (
            ("avx512",),
            {"ATEN_CPU_CAPABILITY": "avx2"},
            "for avx2 or default,.*but for avx512;.*FUSED_LOSSES_CPU=all",
        ),
        (
            USABLE[:1],
            {"FUSED_LOSSES_BACKEND": "tritn"},
            "FUSED_LOSSES_BACKEND is 'tritn', which is none of compiled, tri",
        ),
    ],
    ids=["no library", "another instruction set", "no such backend"],
)
def test_a_fall_back_is_said_once_with_the_remedy(installation, instruction_sets, environment, said):
    errors = said_at_import(installation(*instruction_sets), **environment)
    assert errors.count("fused_losses: ") == errors.count("UserWarning: ") == 1
    assert re.search(said, errors), errors


def test_an_empty_preference_is_none(installation):
    """Files of containers set variables to nothing."""
    assert "fused_losses:" not in said_at_import(installation(USABLE[0]), FUSED_LOSSES_BACKEND="")


def test_libraries_that_do_not_load_are_said_to_be_there(installation):
    folder = installation(USABLE[0])
    (library,) = folder.glob("**/_cpu_*.so")
    library.unlink()  # a link to the real one
    library.write_bytes(b"no library")
    errors = said_at_import(folder)
    assert "does not load" in errors and "no CPU library was built" not in errors, errors


def test_a_preferred_triton_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(backends.modes, "PREFERRED", "triton")
    monkeypatch.setattr(backends, "has_triton", lambda: False)
    with pytest.warns(UserWarning, match="not installed. Install it: pip install triton"):
        backends._check_preference()

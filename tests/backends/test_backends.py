"""Which GPUs the CUDA library serves, and who serves the others."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import torch

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


def test_gpus_that_the_library_was_built_for(gpus, caplog):
    gpus((8, 6), (9, 0))
    assert devices.kernels_for("cuda") == devices.CUDA and not caplog.records
    assert info._cuda_library() == "loaded"


def test_a_gpu_that_it_was_not_built_for(gpus, caplog):
    """Triton serves all of them, and says why, once."""
    with caplog.at_level(logging.WARNING, "fused_losses"):
        gpus((9, 0), (12, 0), (7, 5))
    (record,) = caplog.records
    assert "built for 8.0, 9.0, but GPU 1 is 12.0; Triton serves them" in record.getMessage()
    assert devices.kernels_for("cuda") == "Triton"
    assert "GPU 1 is 12.0" in info._cuda_library()


def test_a_gpu_that_no_one_has_kernels_for(gpus, monkeypatch, caplog):
    monkeypatch.setattr(backends, "has_triton", lambda: False)
    with caplog.at_level(logging.WARNING, "fused_losses"):
        gpus((7, 5))
    assert "torch serves them" in caplog.records[0].getMessage()
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

"""benchmarks/gpu_session: what breaks costs one test, what takes too long ends, the table tells of both."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from contextlib import nullcontext
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch

import fused_losses.functional as L
from fused_losses.registry import LOSSES

FOLDER = Path(__file__).parents[2] / "benchmarks" / "gpu_session"

# Stands for a GPU that a test breaks, for its own process.
BROKEN_GPU = """
import pytest, torch

lost = False

def synchronize():
    if lost:
        raise RuntimeError("CUDA error: device-side assert triggered")

torch.cuda.is_initialized = lambda: True
torch.cuda.synchronize = synchronize
"""

TESTS = """
import sys, time
import conftest, pytest

@pytest.mark.parametrize("n", range(8))
def test_it(n):
    if n == 2:  # an assertion of the device, which is heard of when something waits
        print("Assertion `0 <= label` failed.", file=sys.stderr)
        conftest.lost = True
    if n == 4:
        time.sleep(60)
    assert n != 6
"""


@pytest.fixture
def session(monkeypatch):
    """Its modules, which know one another by their bare names."""
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


def test_each_loss_of_the_gpu_costs_one_test(tmp_path, session):
    (tmp_path / "conftest.py").write_text(BROKEN_GPU)
    (tmp_path / "test_some.py").write_text(TESTS)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-n1",
        "-p",
        "guard",
        "--outcomes",
        "tests.csv",
        "--run",
        "a run",
    ]
    limits = ["-o", "faulthandler_timeout=3", "-o", "faulthandler_exit_on_timeout=true"]
    subprocess.run(
        [*command, *limits, "test_some.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(FOLDER)},
        capture_output=True,
        timeout=300,
    )
    first, *failures = session("table").lines(tmp_path)
    assert first == "a run: 5 passed, 1 failed, 2 crashed"
    rows = (tmp_path / "tests.csv").read_text()
    assert "Assertion `0 <= label` failed." in rows
    assert failures and "test_it : 3" in failures[0]


def test_a_box_ends_what_it_holds_and_what_that_has_started(tmp_path, session):
    boxes = session("boxes")
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    log = tmp_path / "log"
    long = boxes.start([sys.executable, "-c", code], log, cwd=tmp_path, env={})
    short = boxes.start(["false"], tmp_path / "other", cwd=tmp_path, env={}, label="other")
    assert boxes.finish(long, short, seconds=2) == [boxes.STOPPED, 1]
    child = Path("/proc") / log.read_text().splitlines()[1]
    assert not child.exists() or ") Z " in (child / "stat").read_text()


@pytest.fixture
def sources(tmp_path, session, monkeypatch):
    """Of an empty package, libraries for it in a kit, and what was built; a library runs."""
    libraries = session("libraries")
    root, kit, built = tmp_path / "root", tmp_path / "kit", []
    (root / "csrc").mkdir(parents=True)
    (root / "fused_losses").mkdir()
    for name in ("csrc/some.cpp", "setup.py"):
        (root / name).write_text(name)
    monkeypatch.setattr(libraries, "ROOT", root)
    monkeypatch.setattr(libraries, "PACKAGE", root / "fused_losses")
    monkeypatch.setattr(libraries, "tried", lambda device: libraries.RUN)
    monkeypatch.setattr(libraries, "build", lambda *options: built.append(options))
    (kit / "fused_losses").mkdir(parents=True)
    (kit / "fused_losses" / "_cuda.so").write_text("a library")
    (kit / "digest").write_text(libraries.digest())
    return libraries, root, kit, built


def test_libraries_are_those_of_the_sources(sources):
    libraries, root, kit, built = sources
    assert libraries.place(kit, "cpu") == libraries.RUN and not built
    assert (root / "fused_losses" / "_cuda.so").read_text() == "a library"
    (root / "csrc" / "some.cpp").write_text("other sources")
    os.utime(root / "csrc" / "some.cpp", (2e9, 2e9))
    assert libraries.place(kit, "cpu") == libraries.RUN and built


def test_only_libraries_that_do_not_load_are_built_again(sources, monkeypatch, capsys):
    libraries, root, kit, built = sources
    found = [libraries.FAIL]
    monkeypatch.setattr(libraries, "tried", lambda device: found.pop(0))
    assert libraries.place(kit, "cpu") == libraries.FAIL and not built
    # Those that were placed are newer than the sources, and the next to be tried, unless they are taken away.
    found += [libraries.DO_NOT_LOAD, libraries.RUN]
    assert libraries.place(kit, "cpu") == libraries.RUN and built and not found
    assert not (root / "fused_losses" / "_cuda.so").exists()
    said = capsys.readouterr().out
    assert libraries.FAIL in said and libraries.DO_NOT_LOAD in said


def test_a_library_that_fails_is_told_from_one_that_does_not_load(session, monkeypatch):
    libraries = session("libraries")
    if not (libraries.PACKAGE / f"_C{EXTENSION_SUFFIXES[0]}").exists():
        pytest.skip("the libraries for this Python are elsewhere")
    monkeypatch.delenv("FUSED_LOSSES_BACKEND", raising=False)
    assert libraries.tried("cpu") == libraries.RUN
    assert libraries.tried("meta") == libraries.DO_NOT_LOAD  # there are none for this device
    monkeypatch.setattr(libraries, "CHECK", libraries.CHECK.replace("isfinite", "isnan"))
    assert libraries.tried("cpu") == libraries.FAIL


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.family == "softmax"])
def test_profiled_means_over_classes_take_one_launch_by_triton(session, monkeypatch, name):
    """On a GPU that has room for as many programs as there is work for."""
    pytest.importorskip("triton")
    from triton import knobs
    from triton.backends.compiler import GPUTarget

    from fused_losses.triton_kernels import ahead_of_time, tiling

    if knobs.runtime.interpret:
        pytest.skip("TRITON_INTERPRET: kernels are interpreted")
    monkeypatch.setattr(tiling.Tiling, "programs", lambda self, count, device: -(-count // self.rows))
    monkeypatch.setattr(ahead_of_time, "compile", lambda *_, **__: None)
    monkeypatch.setattr(ahead_of_time, "_compiled", {})
    shape = session("launches").SHAPES["classes"]
    logits = torch.empty(shape, dtype=torch.bfloat16, device="meta", requires_grad=True)
    labels = torch.empty(shape[:1], dtype=torch.int64, device="meta")
    with ahead_of_time.compiling(GPUTarget("cuda", 90, 32)) as launches:
        loss = getattr(L, name)(logits * 1, labels)
        assert len(launches) == 1
        torch.autograd.grad(loss, logits, torch.empty_like(loss))
    assert len(launches) == 2


@pytest.mark.parametrize("served", ("C++ (avx2)", "Triton, interpreted", None))
def test_launches_are_recorded_of_a_backend_that_serves_alone(session, monkeypatch, served):
    serves = session("launches").serves
    monkeypatch.setattr("fused_losses.backend", lambda name: nullcontext())
    monkeypatch.setattr("fused_losses.devices.compiled", {"cpu": served} if served else {})
    assert serves("compiled", "cpu") == (served == "C++ (avx2)")
    assert serves("triton", "cpu") == (served == "Triton, interpreted")

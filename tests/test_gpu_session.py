"""benchmarks/gpu_session: what breaks costs one test, what takes too long ends, the table tells of both."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu_session"

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


def test_libraries_are_those_of_the_sources(tmp_path, session, monkeypatch):
    libraries = session("libraries")
    root = tmp_path / "root"
    (root / "csrc").mkdir(parents=True)
    (root / "fused_losses").mkdir()
    for name in ("csrc/some.cpp", "setup.py"):
        (root / name).write_text(name)
    monkeypatch.setattr(libraries, "ROOT", root)
    monkeypatch.setattr(libraries, "PACKAGE", root / "fused_losses")
    monkeypatch.setattr(libraries, "runs", lambda device: True)
    built = []
    monkeypatch.setattr(libraries, "build", lambda *options: built.append(options))
    kit = tmp_path / "kit"
    (kit / "fused_losses").mkdir(parents=True)
    (kit / "fused_losses" / "_cuda.so").write_text("a library")
    (kit / "digest").write_text(libraries.digest())
    assert libraries.place(kit, "cpu") and not built
    assert (root / "fused_losses" / "_cuda.so").read_text() == "a library"
    (root / "csrc" / "some.cpp").write_text("other sources")
    os.utime(root / "csrc" / "some.cpp", (2e9, 2e9))
    assert libraries.place(kit, "cpu") and built

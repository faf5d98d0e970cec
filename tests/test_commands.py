"""The commands that users run, at tiny sizes: info, the benchmark, the demo."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_info_tells_what_runs():
    report = json.loads(run("-m", "fused_losses.info", "--json"))
    assert report["losses"]["cross_entropy"]["cpu"] == "kernels"
    assert report["cpu"]["library"].startswith("_cpu_")
    assert report["built"]["CPU libraries"]
    assert "library: _cpu_" in run("-m", "fused_losses.info")


@pytest.mark.slow
def test_benchmark_verifies_and_writes_its_table(tmp_path):
    path = tmp_path / "bench.csv"
    providers = [f"--provider={name}" for name in ("eager", "fused", "recompute", "inplace")]
    run("-m", "fused_losses.bench", "run", "--size=small", "--rounds=3", f"--csv={path}", *providers)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert {row["provider"] for row in rows} == {"eager", "fused", "recompute", "inplace"}
    assert {row["loss"] for row in rows} >= {"cross_entropy", "mse_loss", "binary_cross_entropy"}
    assert all(row["status"] == "ok" and float(row["median_ms"]) > 0 for row in rows)


@pytest.mark.slow
def test_demo_trains_with_both_losses_alike(tmp_path):
    picture = tmp_path / "demo.png"
    # The command itself fails where the two final losses differ by more than rounding.
    table = run("examples/train_language_model.py", "--tiny", "--out", str(picture))
    assert "final loss" in table
    assert picture.stat().st_size > 10_000

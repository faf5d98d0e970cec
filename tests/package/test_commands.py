"""The commands that users run, at tiny sizes: info, the benchmark, the demo."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from kit.older_torch import makes_documents

from fused_losses.bench import rows as bench_rows
from fused_losses.bench import summary as bench_summary
from fused_losses.bench import timing
from fused_losses.registry import LOSSES

ROOT = Path(__file__).parents[2]

needs_bench = pytest.mark.skipif(
    not all(map(find_spec, ("matplotlib", "rich", "typer"))), reason="the extra `bench` is not installed"
)


def run(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_info_tells_what_runs():
    report = json.loads(run("-m", "fused_losses.info", "--json"))
    assert report["losses"]["cross_entropy"]["cpu"].startswith("C++ (")
    assert report["cpu"]["library"].startswith("_cpu_")
    assert report["built"]["CPU libraries"]
    printed = run("-m", "fused_losses.info")
    assert "library: _cpu_" in printed
    assert all(f"  {name}: " in printed for name in LOSSES)
    assert max(map(len, printed.splitlines())) <= 100


def test_info_says_what_it_takes():
    assert "--json" in run("-m", "fused_losses.info", "--help")
    done = subprocess.run(
        [sys.executable, "-m", "fused_losses.info", "--jsn"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and "unrecognized arguments: --jsn" in done.stderr


@pytest.mark.slow
@needs_bench
def test_benchmark_verifies_and_writes_its_table(tmp_path):
    path = tmp_path / "bench.csv"
    providers = [f"--provider={name}" for name in ("eager", "fused", "recompute", "inplace")]
    run("-m", "fused_losses.bench", "run", "--size=small", "--rounds=3", f"--csv={path}", *providers)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert {row["provider"] for row in rows} == {"eager", "fused", "recompute", "inplace"}
    assert {row["loss"] for row in rows} == set(LOSSES)
    for row in rows:
        if row["status"] == "torch has no bfloat16 kernel":
            assert row["provider"] == "eager" and row["dtype"] == "bfloat16"
        else:
            assert row["status"] == "ok" and float(row["median_ms"]) > 0 and float(row["vs_floor"]) > 0


@pytest.mark.slow
@needs_bench
def test_benchmark_of_all_ends_with_a_summary(tmp_path, monkeypatch):
    path = tmp_path / "bench.csv"
    options = ["--size=small", "--loss=kl_div", "--dtype=float32", "--rounds=3", f"--csv={path}"]
    printed = run("-m", "fused_losses.bench", "run", "--all", *options)
    summary = run("-m", "fused_losses.bench", "summary", str(path))
    assert "Slower than eager" in summary and summary in printed
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    everything = importlib.import_module("results_tables").everything(*bench_rows.read(path))
    assert "| `kl_div` | 32x10 |" in everything


def bench_row(loss, shape, provider, vs_eager, size="large"):
    """A row of which only the ratio to eager matters."""
    fields = dataclasses.fields(bench_rows.Row)
    numbers = {field.name: 1.0 for field in fields if field.default is dataclasses.MISSING}
    texts = {"loss": loss, "size": size, "shape": shape, "dtype": "float32", "provider": provider}
    return bench_rows.Row(**{**numbers, **texts, "status": "ok", "rounds": 7, "vs_eager": vs_eager})


def test_summary_means_over_shapes_before_losses():
    rows = [
        bench_row("cross_entropy", "256x32768", "fused", 2.0),
        bench_row("cross_entropy", "838860x10", "fused", 8.0),
        bench_row("mse_loss", "8192x1024", "fused", 16.0),
        bench_row("mse_loss", "32x10", "fused", 0.95, size="small"),
        bench_row("l1_loss", "32x10", "fused", 0.85, size="small"),
    ]
    (mean,) = bench_summary.means(rows)
    assert (mean.losses, mean.ratios.vs_eager) == (2, pytest.approx(8.0))
    # A tenth is noise.
    assert [row.loss for row in bench_summary.slower_than_eager(rows)] == ["l1_loss"]


def test_a_provider_that_raises_does_not_end_the_run():
    def raises(round_):
        raise RuntimeError("no memory\nand more")

    contenders = {
        "raises": timing.Contender(raises, batch=1),
        "works": timing.Contender(lambda round_: lambda: None, batch=1),
    }
    samples, failures = timing.interleave(contenders, timing.Pace(3, 5, seconds=0.0))
    assert set(samples) == {"works"} and len(samples["works"].seconds) == 3
    assert timing.one_line(failures["raises"]) == "RuntimeError: no memory"


@makes_documents
def test_documents_are_current():
    run("benchmarks/readme.py", "--check")


@pytest.mark.slow
@needs_bench
def test_demo_trains_with_both_losses_alike(tmp_path):
    picture = tmp_path / "demo.png"
    # The command itself fails where the two final losses differ by more than rounding.
    table = run("examples/train_language_model.py", "--tiny", "--out", str(picture))
    assert "final loss" in table
    assert picture.stat().st_size > 10_000

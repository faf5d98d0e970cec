"""The benchmark's commands for a GPU, rehearsed on a CPU, and what is made of their results."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from kit.bench import invoke, machine, row, write

from fused_losses.bench import rows as bench_rows
from fused_losses.bench.gpu import run as gpu_run
from fused_losses.bench.gpu.cases import cases

ROOT = Path(__file__).parents[2]
TINY = cases("cpu", tiny=True)


def bench(*arguments: object, status: int = 0) -> str:
    """The command in a process of its own: it starts others."""
    done = subprocess.run(
        [sys.executable, "-m", "fused_losses.bench", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_rehearsal_without_a_gpu(tmp_path):
    path = tmp_path / "gpu-rehearsal.csv"
    names = ("eager", "cuda fused", "cuda recompute", "cuda inplace", "cuda linear", "liger", "triton fused")
    options = [f"--provider={name}" for name in names]
    losses = ("--loss=mse_loss", "--loss=linear_cross_entropy", "--dtype=bfloat16")
    printed = bench("run", "--device=cpu", "--tiny", f"--csv={path}", *options, *losses)
    assert "mse_loss 8x70 bfloat16 slice, ms: floor" in printed
    assert "triton fused: unavailable: cpu is served by C++" in printed
    with path.open() as file:
        records = list(csv.DictReader(file))
    passes = {(r["loss"], r["provider"], r["pass"]) for r in records if r["status"] == "ok"}
    assert passes == {
        *(("mse_loss", name, "step") for name in names[:4]),
        ("mse_loss", "cuda fused", "training-forward"),
        ("mse_loss", "cuda recompute", "backward"),
        *(("linear_cross_entropy", name, "step") for name in ("eager", "cuda inplace", "cuda linear")),
    }
    for record in records:
        if record["status"] == "ok":
            assert float(record["median_ms"]) > 0 and float(record["host_ms"]) > 0
            assert float(record["vs_floor"]) > 0
            has_copy = record["loss"] == "mse_loss"
            assert bool(record["percent_of_copy"]) == bool(record["gbps"]) == has_copy
            assert record["kernels"].startswith("C++") == record["provider"].startswith("cuda")
            assert bool(record["vs_eager"]) == (record["pass"] == "step")
    assert {r["variant"] for r in records} == {"", "float32 targets", "slice", "transposed target"}
    # And it is read by all that reads results.
    assert "cuda fused" in invoke("compare", path, path, "--all")
    invoke("summary", path)
    invoke("plot", path, "--size=small", "--out", tmp_path)
    assert (tmp_path / "gpu-rehearsal-speed-bfloat16.png").exists()


def test_a_run_without_time_says_what_it_left_out(tmp_path):
    options = ("--tiny", "--seconds=0", "--loss=kl_div", "--dtype=float32", f"--csv={tmp_path / 'none.csv'}")
    printed = invoke("run", *options)
    assert "Out of time, not measured: 8 kl_div 8x70 float32: eager, compile, cuda fused" in printed


def test_options_of_a_cpu_are_refused():
    assert "--size is of runs on a CPU" in invoke("run", "--tiny", "--size=small", status=2)
    assert "is not a part like 0/4" in invoke("warm", "--tiny", "--device=cpu", "--part=4/4", status=2)


def test_a_provider_is_of_one_kind_of_run():
    assert "'cuda fused' is not one of eager, compile, fused" in invoke(
        "run", "--size=small", "--provider=cuda fused", status=2
    )
    assert "no case of a run on a GPU" in invoke("run", "--tiny", "--provider=fused", status=2)


def test_only_what_compiles_is_warmed_and_in_parts():
    all_ = gpu_run.tasks_of(TINY, None, is_warming=True)
    assert {task.provider.split()[0] for task in all_} == {"compile", "triton", "liger", "cut-cross-entropy"}
    parts = [gpu_run.tasks_of(TINY[k::3], None, is_warming=True) for k in range(3)]
    assert sorted(str(task) for part in parts for task in part) == sorted(map(str, all_))


@pytest.mark.slow
def test_warming_compiles():
    # A part of a single case, the first, of which only torch.compile runs on a CPU.
    printed = bench("warm", "--device=cpu", "--tiny", "--part=0/1000")
    assert "Compiled 1 of 5" in printed and "triton fused: unavailable" in printed


def test_a_file_with_other_columns_is_not_added_to(tmp_path):
    path = write(tmp_path / "old.csv", [row("mse_loss", 1.0)])
    path.write_text(path.read_text().replace(",note", ""))
    with pytest.raises(ValueError, match="other columns"), bench_rows.writer(path, machine(), append=True):
        pass


# What is made of results


def gpu_rows():
    """Of three providers on two cases, one with passes and a variant."""
    step = [
        row("cross_entropy", 4.0, provider="eager", percent_of_copy=1.0),
        row("cross_entropy", 1.0, provider="cuda fused", vs_eager=4.0, percent_of_copy=88.0),
        row("cross_entropy", 2.0, provider="cuda fused", vs_eager=2.0, variant="softcap"),
    ]
    apart = row("cross_entropy", 0.9, provider="cuda fused", vs_eager=None)
    return [*step, dataclasses.replace(apart, pass_="training-forward")]


def test_means_are_of_steps_called_as_usual(tmp_path):
    from fused_losses.bench import summary

    found = {mean.provider: mean.ratios.vs_eager for mean in summary.means(gpu_rows())}
    assert found == {"eager": 1.0, "cuda fused": pytest.approx(4.0)}


def test_plots_of_a_gpu(tmp_path):
    path = write(tmp_path / "gpu-x.csv", gpu_rows(), machine="a GPU", isa="sm_90", driver="580")
    invoke("plot", path, "--out", tmp_path)
    assert {p.name for p in tmp_path.glob("*.png")} >= {
        "gpu-x-speed-float32.png",
        "gpu-x-bandwidth-float32.png",
    }


def test_tables_of_a_gpu(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    tables = importlib.import_module("gpu_tables")
    assert tables.overview([]) == "GPU: not yet timed."
    of_gpu = machine(machine="a GPU", isa="sm_90", driver="580", triton="3.6.0")
    overview = tables.overview([(of_gpu, gpu_rows())])
    assert "a GPU (sm_90), torch 2.14, Triton 3.6.0, driver 580" in overview
    assert "| cross_entropy 8x8 float32 | 1 | 4 (1 %) | 1 (88 %) |" in overview and "softcap" not in overview
    everything = tables.everything(of_gpu, gpu_rows())
    assert "| cross_entropy 8x8 float32 | cuda fused | training-forward | 0.9 | - |" in everything
    assert "| cross_entropy 8x8 float32 softcap | 1 | - | 2 (1 MiB) |" in everything

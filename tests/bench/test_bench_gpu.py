"""The benchmark's runs on a GPU, rehearsed: tiny cases, a simulated GPU, workers that die or hang, tables."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from test_bench import invoke, machine, row, write

from fused_losses.bench import accuracy, providers
from fused_losses.bench import cases as bench_cases
from fused_losses.bench import rows as bench_rows
from fused_losses.bench.cases import Case
from fused_losses.bench.gpu import clock, measure, supervisor
from fused_losses.bench.gpu import run as gpu_run
from fused_losses.bench.gpu.cases import cases, providers_of
from fused_losses.bench.gpu.worker import Task
from fused_losses.bench.timing import POOL, Contender, fresh
from fused_losses.bench.variants import USUAL, VARIANTS
from fused_losses.registry import LOSSES

ROOT = Path(__file__).parents[2]
TINY = cases("cpu", tiny=True)
MSE = Case("mse_loss", "small", (8, 6), "float32")


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


# What is measured


def test_every_loss_and_every_variant_is_measured_and_what_matters_comes_first():
    found = cases("cuda")
    assert (found[0].loss, found[0].shape, found[0].dtype) == ("cross_entropy", (8192, 32768), "bfloat16")
    assert {case.loss for case in found} >= {*LOSSES, "linear_cross_entropy"}
    assert {case.variant for case in found} == {*VARIANTS}
    assert {case.device for case in found} == {"cuda"} and len(set(found)) == len(found)
    for case in found:
        if case.size == "large" and case.head is None:
            # Far beyond the 50 MiB of an H100's cache, if only by the first input and its gradient.
            inputs_and_gradient = 2 * case.input_bytes
            assert inputs_and_gradient >= 128 * 2**20, case
    assert set(providers_of(found[0])) >= {"eager", "compile", "cuda fused", "triton recompute", "liger"}


def test_rehearsals_are_tiny():
    assert all(case.numel <= 8 * 70 * 9 * 8 for case in TINY if case.head is None)
    assert len(TINY) == len(set(TINY))


@pytest.mark.parametrize("case", TINY, ids=str)
def test_ours_is_right_on_every_case(case):
    judge = accuracy.Judge(case, "step", [case.inputs(seed) for seed in range(POOL)])
    for name in providers_of(case):
        if name.startswith("cuda"):
            assert judge.verdict(providers.PROVIDERS[name].make(case)).problem == "", name


def test_a_slice_stays_one():
    case = Case("mse_loss", "small", (8, 6), "bfloat16", variant="slice")
    for tensor in (case.inputs(0)[0], fresh(case.inputs(0))[0]):
        assert tensor.stride() == (7, 1) and tensor.storage_offset() == 1 and tensor.requires_grad


@pytest.mark.parametrize("variant", [USUAL, "sum", "class weights", "label smoothing", "z-loss"])
def test_a_batch_of_repeated_rows_is_judged_by_one_of_them(variant, monkeypatch):
    monkeypatch.setattr(bench_cases, "PART_ELEMENTS", 100)
    case = Case("cross_entropy", "small", (32, 10), "float32", variant=variant)
    assert case.parts == 4
    pool = [case.inputs(seed) for seed in range(POOL)]
    assert torch.equal(pool[0][0][:8], pool[0][0][24:]) and not torch.equal(pool[0][0][:8], pool[1][0][:8])
    judge = accuracy.Judge(case, "step", pool)
    right = providers.PROVIDERS["fused"].make(case)
    assert judge.verdict(right).problem == ""

    def wrong_at_the_end(*inputs):
        # The value is right, the gradient of the last row is not.
        x = inputs[0]
        spoilt = torch.cat([x[:-1], x[-1:] * 1.01 - x[-1:].detach() * 0.01])
        return right(spoilt, *inputs[1:])

    assert "gradient elements off" in judge.verdict(wrong_at_the_end).problem
    assert "loss off" in judge.verdict(lambda *inputs: right(*inputs) * (1 + 1e-4)).problem


def test_a_batch_that_cannot_be_halved_is_judged_as_it_is(monkeypatch):
    monkeypatch.setattr(bench_cases, "PART_ELEMENTS", 100)
    assert Case("cross_entropy", "small", (33, 10), "float32").parts == 1
    # And none of a CPU's cases is repeated.
    monkeypatch.undo()
    for loss in LOSSES:
        for case in bench_cases.select(["large"], [loss], ["float32"]):
            assert case.parts == 1


def test_the_least_bytes_of_a_pass():
    numbers = 8 * 6 * 4
    for loss, step, backward in (("mse_loss", 3, 3), ("kl_div", 3, 2), ("triplet_margin_loss", 6, 6)):
        case = dataclasses.replace(MSE, loss=loss)
        found = [measure.least_bytes(case, pass_, case.inputs(0)) for pass_ in ("step", "backward")]
        assert found == [step * numbers, backward * numbers]
    case = dataclasses.replace(MSE, loss="nll_loss")
    assert measure.least_bytes(case, "backward", case.inputs(0)) == 8 * 8 + numbers


# The clock of a GPU


class SimulatedGpu:
    """Work on a queue, and a host that launches it; both in seconds of the same, simulated, time."""

    def __init__(self, monkeypatch) -> None:
        self.now = self.free = 0.0
        gpu = self

        class Event:
            def __init__(self, enable_timing: bool) -> None:
                self.at = 0.0

            def record(self) -> None:
                self.at = max(gpu.free, gpu.now)

            def query(self) -> bool:
                return gpu.now >= self.at

            def synchronize(self) -> None:
                gpu.now = max(gpu.now, self.at)

            def elapsed_time(self, end) -> float:
                return (end.at - self.at) * 1e3

        monkeypatch.setattr(clock.torch.cuda, "Event", Event)
        monkeypatch.setattr(clock.torch.cuda, "_sleep", lambda cycles: self.run(cycles / 1e9), raising=False)
        properties = type("Properties", (), {"L2_cache_size": 64})
        monkeypatch.setattr(clock.torch.cuda, "get_device_properties", lambda: properties)
        zeros = torch.zeros
        monkeypatch.setattr(clock.torch, "zeros", lambda n, dtype, device: zeros(n, dtype=dtype))
        monkeypatch.setattr(clock.time, "perf_counter", lambda: self.now)

    def run(self, seconds: float) -> None:
        self.free = max(self.free, self.now) + seconds

    def launch(self, host: float, kernel: float) -> None:
        self.now += host
        self.run(kernel)


def test_kernels_are_timed_without_the_gaps_between_launches(monkeypatch):
    gpu = SimulatedGpu(monkeypatch)

    def work() -> None:
        for _ in range(6):  # calls of two launches each: the host takes ten times as long as the kernels
            gpu.launch(50e-6, 5e-6)
            gpu.launch(30e-6, 3e-6)

    timing = clock.GpuClock().time(Contender(lambda round_: work, batch=6), seconds=0.01)
    assert timing.late == 0 and len(timing.kernels.seconds) >= clock.LEAST_ROUNDS
    assert timing.kernels.median == pytest.approx(8e-6)
    assert timing.host.median == pytest.approx(80e-6)


def test_work_that_waits_for_the_gpu_is_said_to_have_gaps(monkeypatch):
    gpu = SimulatedGpu(monkeypatch)

    def work() -> None:
        gpu.launch(10e-6, 5e-6)
        gpu.now = max(gpu.now, gpu.free)  # reads a number, say
        gpu.launch(10e-6, 5e-6)

    timing = clock.GpuClock().time(Contender(lambda round_: work, batch=1), seconds=0.01)
    assert timing.late == len(timing.kernels.seconds) >= clock.LEAST_ROUNDS
    assert timing.kernels.median == pytest.approx(20e-6)


def test_a_host_that_is_late_is_given_more_time(monkeypatch):
    gpu = SimulatedGpu(monkeypatch)
    calls = []

    def work() -> None:
        calls.append(None)
        # Slower once it counts than while it is warmed up.
        gpu.launch(10e-6 if len(calls) <= clock.WARM_UP_ROUNDS else 300e-6, 5e-6)

    timing = clock.GpuClock().time(Contender(lambda round_: work, batch=1), seconds=0.1)
    assert timing.late == 0 and timing.kernels.median == pytest.approx(5e-6)


# Workers that die


SPOILT = """
import os, signal, sys, time
from multiprocessing.connection import Connection

from fused_losses.bench import providers
from fused_losses.bench.gpu import worker


def dies(case):
    print("device-side assertion", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(case):
    time.sleep(600)


def counts(case):
    with open({path!r}, "a") as file:
        print(os.getpid(), file=file)
    return providers.eager(case)


for make in (dies, hangs, counts):
    providers.PROVIDERS[make.__name__] = providers.Provider(make, frozenset({{"mse_loss"}}))
worker.main(Connection(int(sys.argv[1])))
"""


@pytest.fixture
def spoilt(tmp_path):
    """The command of a worker with providers that misbehave, and where one of them leaves its processes."""
    script, pids = tmp_path / "worker.py", tmp_path / "pids"
    script.write_text(SPOILT.format(path=str(pids)))
    return [sys.executable, str(script)], pids


def tasks(*names):
    return [Task(MSE, name) for name in names]


def test_a_task_that_kills_its_worker_loses_itself_alone(spoilt, monkeypatch):
    command, pids = spoilt
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    run = supervisor.Supervisor(
        tasks("counts", "dies", "hangs", "counts", "eager"), patience=5, command=command
    )
    found = [(row.provider, row.status) for row in run.rows()]
    assert [provider for provider, _ in found] == ["counts", "dies", "hangs", "counts", "eager"]
    died, hung = found[1][1], found[2][1]
    assert died == "died, signal 11: device-side assertion" and hung == "hung for 5 s"
    assert {status for provider, status in found if provider in ("counts", "eager")} == {"ok"}
    first, second = map(int, pids.read_text().split())
    assert first != second and run.left_out == []
    for pid in (first, second):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_what_there_is_no_time_for_is_left_out(spoilt, monkeypatch):
    command, _ = spoilt
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    none = supervisor.Supervisor(tasks("counts"), seconds=0, command=command)
    assert list(none.rows()) == [] and none.left_out == tasks("counts")
    # One that hangs beyond the end is not said to have failed, and does not hold the run up. The times are
    # those that the run asks for: at the start, twice before each task, and behind the one that hung.
    times = iter([0, 0, 0, 14, 14.5, 16])
    monkeypatch.setattr(supervisor, "time", SimpleNamespace(monotonic=lambda: next(times)))
    monkeypatch.setattr(supervisor, "GRACE", 0.5)
    cut = supervisor.Supervisor(tasks("counts", "hangs", "eager"), seconds=15, command=command)
    assert [row.provider for row in cut.rows()] == ["counts"]
    assert cut.left_out == tasks("hangs", "eager")


def test_a_worker_that_does_not_start_ends_the_run():
    broken = supervisor.Supervisor(
        tasks("eager"), command=[sys.executable, "-c", "raise SystemExit('no GPU')"]
    )
    with pytest.raises(RuntimeError, match="does not start: died, status 1: no GPU"):
        list(broken.rows())


def test_a_machine_on_which_everything_dies_ends_the_run(spoilt, monkeypatch):
    command, _ = spoilt
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(supervisor, "MOST_DEATHS", 1)
    run = supervisor.Supervisor(tasks("dies", "eager"), command=command)
    with pytest.raises(RuntimeError, match="1 workers have died"):
        list(run.rows())
    assert run.left_out == tasks("eager")


def test_a_worker_needs_neither_typer_nor_matplotlib():
    code = (
        "import sys; sys.modules.update(dict.fromkeys(('matplotlib', 'rich', 'typer')))\n"
        "import fused_losses.bench.gpu.worker\n"
        "del sys.modules['rich'], sys.modules['typer']\n"
        "import fused_losses.bench.cli"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# The commands


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
    assert {r["variant"] for r in records} == {"", "float32 targets", "slice"}
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

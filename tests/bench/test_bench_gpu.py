"""What the benchmark measures on a GPU, and by which clock: tiny cases, a simulated GPU."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")


from fused_losses.bench import accuracy, providers, rows
from fused_losses.bench import cases as bench_cases
from fused_losses.bench.cases import Case
from fused_losses.bench.gpu import clock, measure
from fused_losses.bench.gpu.cases import cases, providers_of
from fused_losses.bench.timing import POOL, Contender, fresh
from fused_losses.bench.variants import USUAL, VARIANTS
from fused_losses.registry import LOSSES

TINY = cases("cpu", tiny=True)
MSE = Case("mse_loss", "small", (8, 6), "float32")


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


@pytest.mark.parametrize(("hip", "architecture"), [(None, "sm_90"), ("6.4", "gfx942")])
def test_architecture_of_the_gpu(monkeypatch, hip, architecture):
    """NVIDIA's properties have the field that AMD's name the architecture in, with something else in it."""
    properties = SimpleNamespace(major=9, minor=0, gcnArchName="gfx942" if hip else "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda: properties)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert rows._gpu_architecture() == architecture


def test_liger_takes_no_images(monkeypatch):
    monkeypatch.setattr(providers, "_package", lambda name: SimpleNamespace(liger_cross_entropy=None))
    make = providers.PROVIDERS["liger"].make
    make(Case("cross_entropy", "large", (8, 10), "float32", "cuda"))
    with pytest.raises(providers.Unavailable, match="only"):
        make(Case("cross_entropy", "large", (8, 21, 4, 4), "float32", "cuda"))

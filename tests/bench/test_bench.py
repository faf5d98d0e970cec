"""The benchmark's commands: comparisons with known answers, pictures, memory, errors, providers' reasons."""

from __future__ import annotations

import csv
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")

from kit.bench import invoke, row, write

from fused_losses.bench import compare, errors, memory, model, prediction, providers
from fused_losses.bench import rows as bench_rows
from fused_losses.bench.accuracy import Judge, exact
from fused_losses.bench.cases import Case, select
from fused_losses.bench.heads import HEADS
from fused_losses.bench.options import shape
from fused_losses.bench.rows import MIB
from fused_losses.bench.timing import POOL
from fused_losses.bench.tolerance import EAGER_FACTOR, SLACK_ULP

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
SMALL = Case("linear_cross_entropy", "small", (32, 64, 128), "float32")

BASE = [row("mse_loss", 1.0), row("l1_loss", 1.0), row("kl_div", 4.0), row("huber_loss", 1.0, spread=0.5)]


def test_comparison_tells_change_from_noise():
    head = [
        row("mse_loss", 2.0),
        row("l1_loss", 1.005),
        row("kl_div", 1.0),
        row("huber_loss", 1.9, spread=0.5),
    ]
    found = compare.compare(BASE, [*head, row("nll_loss", 1.0)])
    verdicts = {change.case.split()[0]: change.verdict for change in found.changes}
    assert verdicts == {"mse_loss": "slower", "l1_loss": "same", "kl_div": "faster", "huber_loss": "same"}
    assert found.means() == {"fused": pytest.approx((2.0 * 1.005 * 0.25 * 1.9) ** 0.25)}
    assert (found.only_base, found.only_head) == (0, 1)
    assert found.changes[0].least == pytest.approx(2 * 0.99 / 1.01)


def test_compare_fails_above_a_limit(tmp_path):
    base = write(tmp_path / "base.csv", BASE)
    slower = write(
        tmp_path / "slower.csv", [dataclasses.replace(BASE[0], median_ms=1.2, p10_ms=1.15, p90_ms=1.3)]
    )
    assert "mse_loss 8x8 float32 step fused 1.200" in invoke("compare", base, slower)
    invoke("compare", base, slower, "--fail-above", 1.1, status=1)
    invoke("compare", base, slower, "--fail-above", 1.25)
    # Beyond the limit, but within the deciles.
    noisy = write(tmp_path / "noisy.csv", [row("huber_loss", 1.9, spread=0.5)])
    invoke("compare", base, noisy, "--fail-above", 1.1)


def test_compare_refuses_other_machines(tmp_path):
    base = write(tmp_path / "base.csv", BASE)
    other = write(tmp_path / "other.csv", BASE, isa="AVX512")
    assert "isa: AVX2 and AVX512" in invoke("compare", base, other, status=2)
    assert "isa: AVX2 and AVX512" in invoke("compare", base, other, "--any-machine")
    newer = write(tmp_path / "newer.csv", BASE, torch="2.15")
    assert "torch: 2.14 and 2.15" in invoke("compare", base, newer)
    invoke("compare", base, write(tmp_path / "none.csv", [row("nll_loss", 1.0)]), status=2)


def test_a_file_without_a_column_is_refused(tmp_path):
    path = tmp_path / "old.csv"
    path.write_text("machine,loss\na,b\n")
    assert "has no column" in invoke("summary", path, status=2)


def test_plots_are_the_same_every_time(tmp_path):
    invoke("plot", RESULTS / "cpu.csv", "--out", tmp_path / "a")
    invoke("plot", RESULTS / "cpu.csv", "--out", tmp_path / "b")
    names = {path.name for path in (tmp_path / "a").iterdir()}
    kinds = ("speed", "bandwidth", "memory")
    assert names == {f"cpu-{kind}-{dtype}.png" for kind in kinds for dtype in ("float32", "bfloat16")}
    for name in names:
        content = (tmp_path / "a" / name).read_bytes()
        assert content.startswith(b"\x89PNG") and 5_000 < len(content) < 100_000
        assert content == (tmp_path / "b" / name).read_bytes()


def test_plots_of_a_linear_layer_have_files_of_their_own(tmp_path):
    rows = [row("linear_cross_entropy", 3.0, provider=name) for name in ("eager", "linear", "torch chunked")]
    path = write(tmp_path / "heads.csv", [*rows, row("mse_loss", 1.0)])
    invoke("plot", path, "--out", tmp_path)
    assert {"heads-speed-float32.png", "heads-linear-speed-float32.png"} <= {
        p.name for p in tmp_path.iterdir()
    }


def test_shapes_instead_of_those_of_a_size():
    cases = select(["large"], ["l1_loss"], ["float32"], shapes=[shape("3x5"), shape("7")])
    assert [(case.shape, case.numel) for case in cases] == [((3, 5), 15), ((7,), 7)]
    for wrong in ("3x", "3x0", "-3", "3,5"):
        assert "is not a shape like 64x1024" in invoke("run", f"--shape={wrong}", status=2)


def run_small_heads(path, *options, status=0):
    """Of losses behind a linear layer; a process of its own, since a run limits its memory."""
    command = [sys.executable, "-m", "fused_losses.bench", "run", "--linear", "--size=small", "--rounds=3"]
    done = subprocess.run(
        [*command, f"--csv={path}", *options], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_run_of_losses_behind_a_linear_layer(tmp_path):
    path = tmp_path / "heads.csv"
    names = ("eager", "inplace", "linear", "torch chunked", "liger")
    run_small_heads(path, "--dtype=float32", *(f"--provider={n}" for n in names))
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert {row["loss"] for row in rows} == set(HEADS)
    for each in rows:
        if not each["status"].startswith(providers.UNAVAILABLE):
            assert each["status"] == "ok" and float(each["median_ms"]) > 0 and float(each["floor_ms"]) > 0
    of_cross_entropy = {each["provider"] for each in rows if each["loss"] == "linear_cross_entropy"}
    assert of_cross_entropy == {*names, providers.PRODUCTS}
    assert {each["provider"] for each in rows if each["loss"] == "linear_loss"} == {
        *names[:3],
        providers.PRODUCTS,
    }


@pytest.mark.slow
def test_a_run_adds_to_a_file_of_the_same_machine(tmp_path):
    path = tmp_path / "heads.csv"
    options = "--append", "--loss=linear_loss", "--provider=linear"
    for dtype in ("float32", "bfloat16"):
        run_small_heads(path, *options, f"--dtype={dtype}")
    machine, rows = bench_rows.read(path)
    assert [row.dtype for row in rows] == ["float32"] * 2 + ["bfloat16"] * 2
    path.write_text(path.read_text().replace(machine.machine, "another"))
    assert "another machine" in run_small_heads(path, *options, "--dtype=float32", status=2)


@pytest.mark.parametrize("loss", HEADS)
def test_reference_in_chunks_is_torchs_in_float64(loss, monkeypatch):
    monkeypatch.setattr("fused_losses.bench.heads.REFERENCE_LOGITS", 5 * 128)  # 32 rows: not a multiple of 5
    case = Case(loss, "small", (32, 64, 128), "float32")
    inputs = case.inputs(seed=0)
    found = exact(case, inputs, "step")
    wide = [
        x.detach().double().requires_grad_(x.requires_grad) if x.is_floating_point() else x for x in inputs
    ]
    loss_ = getattr(F, HEADS[loss].loss)(F.linear(wide[0], wide[1]), wide[2])
    torch.testing.assert_close(found.loss, loss_.detach())
    for mine, theirs in zip(found.grads, torch.autograd.grad(loss_, wide[:2]), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_wrong_gradient_behind_a_linear_layer_is_refused():
    judge = Judge(SMALL, "step", [SMALL.inputs(seed) for seed in range(POOL)])
    assert judge.verdict(HEADS[SMALL.loss].unfused).problem == ""

    def wrong(hidden, weight, target):
        return F.cross_entropy(F.linear(hidden, weight * (1 + 1e-4)), target)

    assert judge.verdict(wrong).problem.startswith("WRONG")


def test_providers_say_why_they_cannot_run(monkeypatch):
    for package in ("liger_kernel", "liger_kernel.transformers.functional", "cut_cross_entropy"):
        monkeypatch.setitem(sys.modules, package, None)
    for name in ("liger", "cut-cross-entropy"):
        with pytest.raises(providers.Unavailable, match="not installed"):
            providers.PROVIDERS[name].make(SMALL)
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers.functional", object())
    with pytest.raises(providers.Unavailable, match="needs a GPU"):
        providers.PROVIDERS["liger"].make(SMALL)
    monkeypatch.delattr(F, "linear_cross_entropy", raising=False)
    with pytest.raises(providers.Unavailable, match="does not have it"):
        providers.PROVIDERS["torch chunked"].make(SMALL)


def test_every_loss_has_its_providers():
    assert "liger" not in providers.serving(
        Case("mse_loss", "small", (32, 10), "float32"), list(providers.PROVIDERS)
    )
    assert set(providers.serving(SMALL, list(providers.PROVIDERS))) == set(providers.PROVIDERS)


def test_memory_of_a_real_step_is_predicted():
    # 2 x 16 positions, 1024 classes of float32: 128 KiB of logits; gradients of 32 x 8 and 1024 x 8 numbers.
    layer = model.Layer(32, 8, 1024, "float32")
    assert model.total(model.peak("eager", layer)[1]) == 3 * layer.logits == 3 * 2**17
    assert model.total(model.peak("fused", layer)[1]) == 2 * 2**17
    assert model.total(model.peak("inplace", layer)[1]) == 2**17 + 4 * 8 * (32 + 1024)
    printed = invoke("memory", "--dtype", "bfloat16", "--provider", "eager", "--provider", "linear")
    assert "8 x 8192 positions, 128256 classes, 4096 features" in printed and "48,096.0 in all" in printed


@pytest.mark.skipif(not memory.available(), reason="only Linux tells a process its peak memory")
@pytest.mark.parametrize(
    ("provider", "dtype", "sizes"),
    [
        # 64 MiB of logits: what is off is far below.
        ("eager", "float32", (1024, 64, 16384)),
        ("fused", "float32", (1024, 64, 16384)),
        ("inplace", "float32", (1024, 64, 16384)),
        # A head whose gradient takes 64 MiB in float32, and 32 more when it is rounded.
        ("linear", "float32", (512, 512, 32768)),
        ("linear", "bfloat16", (512, 512, 32768)),
    ],
)
def test_memory_is_as_predicted(provider, dtype, sizes, request):
    if request.config.option.cpu_products and dtype == "bfloat16":
        pytest.skip("--cpu-products does not reach the process whose memory is measured")
    layer = model.Layer(*sizes, dtype)
    case = Case(prediction.LOSS, "large", sizes, dtype)
    measured = memory.peak_bytes(case, provider, threads=torch.get_num_threads())
    predicted = model.total(model.peak(provider, layer)[1])
    assert measured is not None and prediction.is_close(predicted, measured), (predicted, measured)
    # The tolerance tells one copy of what is large from two.
    assert not prediction.is_close(predicted + 64 * MIB, measured)


def test_accuracy_of_kinds_of_inputs(tmp_path):
    path = tmp_path / "accuracy.csv"
    losses = ("--loss", "cross_entropy", "--loss", "linear_cross_entropy")
    names = ("--provider", "eager", "--provider", "fused", "--provider", "inplace")
    arguments = ("accuracy", "--size", "small", "--dtype", "float32", *losses, *names, "--csv", path)
    invoke(*arguments)
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert "is there" in invoke(*arguments, status=2)
    kinds = {row["kind"] for row in rows if row["loss"] == "cross_entropy"}
    assert kinds == {errors.SAMPLES, *errors.LOGIT_KINDS}
    assert len(rows) == 3 * (len(kinds) + 1)
    for each in rows:
        assert each["status"] == "ok" and 0 <= float(each["rms_grad"]) <= float(each["max_grad"]), each
    of_eager = {(each["loss"], each["kind"]): each for each in rows if each["provider"] == "eager"}
    for each in rows:
        theirs = of_eager[each["loss"], each["kind"]]
        for column in ("loss_error", "max_grad"):
            # The rule of accuracy, for the largest element.
            assert float(each[column]) <= EAGER_FACTOR * float(theirs[column]) + SLACK_ULP, each


def test_errors_are_in_eps_of_the_largest_element():
    reference = torch.tensor([1.0, -4.0], dtype=torch.float64)
    mine = reference + torch.tensor([0.0, 0.5], dtype=torch.float64)
    assert errors._errors(mine, reference, 0.125) == (1.0, pytest.approx(0.5**0.5))

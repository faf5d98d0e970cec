"""What the benchmark's command says of what is wrong, where it writes, and how a run goes on after Ctrl-C."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")

from kit.bench import invoke, machine, row, write

from fused_losses.bench import destination, providers, report, session
from fused_losses.bench import rows as bench_rows
from fused_losses.bench.cases import DTYPES, SETS, Case, cases_of_set, select, takes_variant
from fused_losses.bench.heads import HEADS
from fused_losses.bench.variants import VARIANTS
from fused_losses.registry import LOSSES

ROOT = Path(__file__).parents[2]
SMALL = ("--size=small", "--rounds=2", "--dtype=float32", "--provider=eager", "--provider=fused")


def bench(*arguments, path=None):
    """The command in a process of its own, without a terminal."""
    environment = os.environ if path is None else {**os.environ, "PATH": f"{path}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", "fused_losses.bench", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=600)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "--provider=foo"], "'foo' is not one of eager, compile"),
        (["run", "--loss=cross_entropy", "--shape=7"], "cross_entropy takes shapes of ROWSxCLASSES"),
        (["run", "--loss=mse_loss", "--shape=3y"], "'3y' is not a shape like 64x1024"),
        (["run", "--loss=mse_loss", "--variant=pos_weight"], "no such loss has the variant pos_weight"),
        (["run", "--resume"], "--resume needs --csv"),
        (["run", "--losses=x"], "No such option"),
        (["summary", "missing.csv"], "does not exist"),
        (["step", "mse_loss", "--shape=8x8", "--device=cpu"], "cuda fused cannot run here"),
    ],
)
def test_what_is_wrong_is_one_line(arguments, says, tmp_path):
    done = bench(*arguments, path=tmp_path)
    if "cuda fused" in says and done.returncode == 0:
        pytest.skip("the CPU's kernels stand for CUDA's")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("Error: ") and says in done.stderr and done.stderr.count("\n") == 1


def test_help_is_what_no_arguments_get():
    done = bench()
    assert done.returncode == 0 and "Commands" in done.stdout


def test_list_has_what_a_run_takes():
    printed = invoke("list")
    for name in (*LOSSES, *HEADS, *DTYPES, *providers.PROVIDERS, *filter(None, VARIANTS)):
        assert f" {name}" in printed, name


@pytest.mark.slow
def test_a_run_without_a_terminal(tmp_path):
    """Tells how far it is, in lines; its tables fit into 80 columns; it writes over nothing."""
    path = tmp_path / "run.csv"
    variants = ("--variant=usual", "--variant=label smoothing", "--variant=class weights")
    arguments = ["run", *SMALL, "--loss=cross_entropy", "--loss=mse_loss", *variants, f"--csv={path}"]
    done = bench(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    told = [line for line in lines if line.startswith("[")]
    assert [line.partition(",")[0] for line in told] == ["[1/4", "[2/4", "[3/4", "[4/4"]
    assert "cross_entropy 32x10 float32 class weights, ms: " in told[2]
    # Files' names and the lines of cases are as long as they are.
    assert all(len(line) <= 80 for line in lines if line not in told and str(path) not in line)
    before = path.read_bytes()
    again = bench(*arguments)
    assert again.returncode == 2 and "--resume goes on with it" in again.stderr
    assert path.read_bytes() == before
    resumed = bench(*arguments, "--resume")
    assert resumed.returncode == 0 and "4 of 4 cases are there already" in resumed.stdout
    assert path.read_bytes() == before


def test_ctrl_c_keeps_what_was_measured(tmp_path, monkeypatch):
    path = tmp_path / "run.csv"
    arguments = ("run", *SMALL, "--loss=l1_loss", "--loss=mse_loss", f"--csv={path}")
    measure, asked = session.measure, []

    def interrupted(case, plan, announce):
        asked.append(case.loss)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return measure(case, plan, announce)

    monkeypatch.setattr(session, "measure", interrupted)
    printed = invoke(*arguments, status=130)
    assert f"--csv {path} --resume" in printed
    assert {row.loss for row in bench_rows.read(path)[1]} == {"l1_loss"}
    invoke(*arguments, "--resume")
    assert asked == ["l1_loss", "mse_loss", "mse_loss"]
    _, rows = bench_rows.read(path)
    assert [row.loss for row in rows] == ["l1_loss"] * 2 + ["mse_loss"] * 2
    beside = json.loads(path.with_suffix(".json").read_text())
    assert [each["loss"] for each in beside] == [row.loss for row in rows]
    for each, expected in zip(beside, rows, strict=True):
        assert each["median_ms"] == expected.median_ms and each["note"] is None
        assert each["commit"] == bench_rows.Machine.this().commit
        assert each["triton"] is None or each["triton"][0].isdigit()


def test_a_resumed_run_measures_what_has_no_row(tmp_path):
    path = write(tmp_path / "run.csv", [row("mse_loss", 1.0, shape="32x10")])
    found = destination.Destination.of(path, machine(), append=False, resume=True)
    case = Case("mse_loss", "small", (32, 10), "float32")
    assert not found.lacks(case, "step", ["fused"])
    assert found.lacks(case, "step", ["fused", "eager"]) and found.lacks(case, "forward", ["fused"])
    assert found.lacks(Case("mse_loss", "small", (32, 10), "float32", variant="sum"), "step", ["fused"])
    adds = destination.Destination.of(path, machine(), append=True, resume=False)
    assert adds.appends and adds.lacks(case, "step", ["fused"])


def test_files_are_named_after_the_second():
    assert destination.new_path().name.count(":") == 0
    assert len(destination.new_path().stem) == len("2026-01-02T030405")


@pytest.mark.parametrize("name", [name for name in VARIANTS if name])
def test_losses_can_be_called_as_variants_say(name):
    """By this package as by torch: the gradients of a step are accurate."""
    losses = [loss for loss in LOSSES if takes_variant(loss, (32, 10), name)]
    assert losses
    if len(losses) == len(LOSSES):
        # Of a variant that every loss has, some losses of each kind.
        losses = losses[::4]
    for case in select(["small"], losses, ["bfloat16"], variants=[name]):
        plan = session.Plan(["fused"], "step", 2, 1.0, 1, False)
        (found,) = session.measure(case, plan, lambda stage: None)
        assert found.status == "ok", (case, found.status)


def test_a_set_has_its_own_sizes_and_variants(tmp_path):
    (name,) = SETS
    cases = cases_of_set(name, LOSSES, ["float32"])
    assert len(cases) == len({str(case) for case in cases}) == len(SETS[name])
    assert {case.variant for case in cases} > {"half", "losses summed", "transposed target", "slice"}
    refused = invoke("run", f"--set={name}", "--size=small", f"--csv={tmp_path / 'run.csv'}", status=2)
    assert "of its own" in refused


def test_a_target_is_laid_the_other_way_round():
    case = Case("mse_loss", "small", (32, 10), "bfloat16", variant="transposed target")
    input, target = case.inputs(0)
    assert input.stride() == (10, 1) and target.stride() == (1, 32)


def test_memory_is_limited_while_others_are_verified_and_never_while_anyone_is_timed(monkeypatch):
    usual, limits = resource.getrlimit(resource.RLIMIT_DATA), {}
    verdict, interleave = session.Judge.verdict, session.interleave

    def verified(judge, function):
        limits[function] = resource.getrlimit(resource.RLIMIT_DATA)
        return verdict(judge, function)

    def timed(contenders, pace):
        assert resource.getrlimit(resource.RLIMIT_DATA) == usual
        return interleave(contenders, pace)

    monkeypatch.setattr(session.Judge, "verdict", verified)
    monkeypatch.setattr(session, "interleave", timed)
    plan = session.Plan(["eager", "fused"], "step", 2, 1.0, 1, False)
    found = session.measure(Case("mse_loss", "small", (32, 10), "float32"), plan, lambda stage: None)
    assert [each.status for each in found] == ["ok", "ok"]
    of_eager, of_fused = limits.values()
    assert of_eager != usual and of_fused == usual
    assert resource.getrlimit(resource.RLIMIT_DATA) == usual


def test_a_slice_is_not_overwritten():
    case = Case("mse_loss", "small", (32, 10), "float32", variant="slice")
    assert providers.serving(case, ["eager", "inplace", "fused"]) == ["eager", "fused"]
    assert not takes_variant("cross_entropy", (2, 3, 4, 4), "slice")


def test_the_table_is_narrow_however_large_its_numbers(capsys):
    huge = row("triplet_margin_with_distance_loss", 123456.7, provider="cut-cross-entropy", vs_eager=1234.5)
    console = report.Console(width=80)
    report.print_results(
        [huge, row("mse_loss", 1.0, median_ms=None, status="WRONG gradient 0")], machine(), console
    )
    lines = capsys.readouterr().out.splitlines()
    assert any("123457" in line and "1234x" in line for line in lines)
    assert any("WRONG gradient 0" in line for line in lines)
    assert max(map(len, lines)) <= 80


def test_profilers_are_given_the_step(tmp_path):
    for name in ("ncu", "nsys"):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/{name}.txt\n')
        program.chmod(0o755)
        chosen = ("--shape=8x8", "--dtype=float32", "--provider=fused", "--device=cpu")
        done = bench("step", "mse_loss", *chosen, f"--{name}={tmp_path}/report", path=tmp_path)
        assert done.returncode == 0, done.stderr
        called = (tmp_path / f"{name}.txt").read_text()
        assert f"{tmp_path}/report {sys.executable} -m fused_losses.bench step mse_loss --shape=8x8" in called
        assert f"--{name}" not in called.partition(sys.executable)[2]


def test_a_step_says_whose_kernels_ran():
    printed = invoke("step", "mse_loss", "--shape=8x8", "--dtype=float32", "--provider=fused", "--device=cpu")
    assert "mse_loss 8x8 float32, fused: 1 by " in printed

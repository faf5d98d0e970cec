"""A run of the benchmark on a GPU whose workers die or hang."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("matplotlib")


from fused_losses.bench.cases import Case
from fused_losses.bench.gpu import supervisor
from fused_losses.bench.gpu.worker import Task

ROOT = Path(__file__).parents[2]
MSE = Case("mse_loss", "small", (8, 6), "float32")


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

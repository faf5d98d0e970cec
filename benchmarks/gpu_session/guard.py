"""A pytest plugin for tests that may break the GPU for their process: `-p guard --outcomes FILE --run NAME`.

After an assertion of the device or an access out of bounds, a process can do nothing more on the GPU. So the
workers of pytest-xdist wait for the GPU after each test, whose fault an error then is, and end if they have
lost the GPU; xdist starts others for the tests that are left. Each outcome is a line of FILE at once, and
each failure is printed when it comes.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
import torch

FIELDS = ("run", "test", "outcome", "seconds", "message")
LONGEST = 300  # characters of a message, so that a screen shows it
LONGEST_REPORT = (
    1500  # of a failure: a file of 16 MiB, as may be the most that comes back, holds ten thousand
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--outcomes", type=Path, required=True, help="where a line for each test is added")
    parser.addoption("--run", required=True, help="what the lines call this run")


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(Worker())
    else:
        config.pluginmanager.register(Outcomes(config.getoption("--outcomes"), config.getoption("--run")))


class Worker:
    """Of a process that runs tests."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_teardown(self):
        result = yield
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return result

    @pytest.hookimpl(trylast=True)  # behind xdist's own, which sends the report
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and _is_lost():
            os._exit(1)


def _is_lost() -> bool:
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


class Outcomes:
    """Of the process that waits for the others."""

    def __init__(self, path: Path, run: str) -> None:
        self.run = run
        self.file = path.open("a", newline="")
        self.writer = csv.writer(self.file)
        if not self.file.tell():
            self.writer.writerow(FIELDS)
        self.waiting: dict[str, None] = {}

    def write(self, test: str, outcome: str, seconds: float = 0.0, message: str = "") -> None:
        self.writer.writerow((self.run, test, outcome, round(seconds, 2), message[:LONGEST]))
        self.file.flush()

    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        self.waiting = self.waiting or dict.fromkeys(ids)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.passed and report.when != "call":
            return
        self.waiting.pop(report.nodeid, None)
        # xdist's word for the test at which a worker ended.
        outcome = "crashed" if report.when == "???" else report.outcome
        self.write(report.nodeid, outcome, report.duration, "" if report.passed else _why(report))
        if report.failed:
            print(f"\n{report.nodeid}\n{report.longreprtext[-LONGEST_REPORT:]}", flush=True)

    @pytest.hookimpl(tryfirst=True)  # before xdist waits for its workers
    def pytest_sessionfinish(self) -> None:
        for test in self.waiting:
            self.write(test, "not run")
        self.file.close()


def _why(report: pytest.TestReport) -> str:
    """The device's own words, if it has left any; else those of the exception."""
    said = [line for line in report.capstderr.splitlines() if "Assertion" in line]
    raised = [line[1:].strip() for line in report.longreprtext.splitlines() if line.startswith("E ")]
    return (said or raised or report.longreprtext.splitlines() or [""])[0]

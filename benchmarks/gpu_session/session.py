"""What the stages of a session share: where results go, how much time is left, and how commands run."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import boxes

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

PACKAGES = ROOT / "build" / "gpu-session-packages"
"""Where what the kit has of Python's packages is installed."""

FILES = (
    "session.log",
    "library.log",
    "tests.csv",
    "tests.log",
    "benchmark.csv",
    "benchmark.log",
    "kernels.csv",
    "tools.log",
)
"""All that a session leaves."""

LEAST = 10.0
"""Seconds without which no command is worth starting: importing torch can take as long."""


class Session:
    """One run of some stages."""

    def __init__(self, out: Path, kit: Path, dry: bool, seconds: float) -> None:
        self.out, self.kit, self.dry = out, kit, dry
        self.device = "cpu" if dry else "cuda"
        # CI has two cores.
        self.workers = min(os.cpu_count() or 1, 2 if dry else 64)
        self.warmers: list[subprocess.Popen[bytes]] = []
        """What compiles in the background for the benchmark."""
        self.backends = ["compiled", "triton"]
        """Those to be tried; without the first where no library could be had."""
        # A rehearsal is about what runs, not about how fast a shared machine is.
        self.patience = 4 if dry else 1
        self.not_run: list[str] = []
        """What was left out, for the table."""
        self.began = time.monotonic()
        self.end = self.began + seconds - boxes.GRACE
        out.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (out / name).unlink(missing_ok=True)
        paths = [str(ROOT), str(HERE), str(PACKAGES), os.environ.get("PYTHONPATH", "")]
        self.env = {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "PYTHONUNBUFFERED": "1",
            "COLUMNS": "160",  # for tables, as there is no terminal
            # Or each of the processes that run tests starts a pool of compilers.
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
        }

    def say(self, *lines: str) -> None:
        """On the screen and into session.log."""
        with (self.out / "session.log").open("a") as log:
            for line in lines:
                text = f"[{time.monotonic() - self.began:4.0f} s] {line}"
                print(text, flush=True)
                print(text, file=log)

    def leave_out(self, what: str) -> None:
        """Says, now and in the table, that something is not run."""
        self.not_run.append(f"not run: {what}")
        self.say(self.not_run[-1])

    def left(self) -> float:
        return self.end - time.monotonic()

    def has_time(self) -> bool:
        return self.left() >= LEAST

    def start(self, log: str, *command: str, label: str = "", **env: str) -> subprocess.Popen[bytes]:
        """A command in the background."""
        return boxes.start(list(command), self.out / log, cwd=ROOT, env={**self.env, **env}, label=label)

    def run(self, seconds: float, log: str, *command: str, **env: str) -> int:
        """The exit status of a command that may take so long, if so much is left."""
        return self.finish(self.start(log, *command, **env), seconds=seconds)[0]

    def finish(self, *processes: subprocess.Popen[bytes], seconds: float) -> list[int]:
        """The exit statuses of commands that together may take so long, if so much is left."""
        return boxes.finish(*processes, seconds=min(seconds * self.patience, self.left()))

    def python(self, seconds: float, log: str, *arguments: str, **env: str) -> int:
        """The same with Python."""
        return self.run(seconds, log, sys.executable, *arguments, **env)

    def environment_of(self, backend: str) -> dict[str, str]:
        """What makes the backend's kernels those that tests try; few tests, where Triton interprets them."""
        if backend == "triton" and self.dry:
            return {"FUSED_LOSSES_BACKEND": backend, "FUSED_LOSSES_TEST_SHARE": "40", "TRITON_INTERPRET": "1"}
        return {"FUSED_LOSSES_BACKEND": backend}

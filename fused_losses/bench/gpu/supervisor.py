"""Has a process do tasks; if one kills it or hangs it, another process goes on with the next."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection

from fused_losses.bench.accuracy import Verdict
from fused_losses.bench.gpu.worker import Task
from fused_losses.bench.measured import row_of
from fused_losses.bench.rows import OK, Row

WORKER = (sys.executable, "-m", "fused_losses.bench.gpu.worker")

# Seconds without a message after which a worker counts as hung: torch.compile takes up to 30 for a loss.
PATIENCE = 60.0

# Seconds for a worker to start: it loads torch, Triton and the kernels' library, perhaps from a cold disk.
START_PATIENCE = 120.0

# Seconds for a worker to end, which includes that the driver frees its memory on the GPU.
EXIT_PATIENCE = 10.0

# Seconds for which a task may go on when the run's time is up; most are done by then.
GRACE = 10.0

# After so many workers have died, the machine fails rather than the tasks.
MOST_DEATHS = 25

# Characters that are kept of what a worker last wrote before it died, such as a device's failed assertion.
LAST_WORDS = 300


class _Died(Exception):
    """A worker has died or hangs; the message says which."""


class _Worker:
    """The supervisor's end of a worker process: sends tasks, and receives rows."""

    def __init__(self, command: Sequence[str]) -> None:
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - `stop` closes it
        here, there = Pipe()
        self._connection: Connection = here
        # In strict mode, torch's function is not timed under this package's name. A task compiles a kernel or
        # two, for which a pool of processes would take longer to start.
        defaults = {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
        environment = {**defaults, **os.environ, "FUSED_LOSSES_STRICT": "1"}
        self._process = subprocess.Popen(
            [*command, str(there.fileno())],
            pass_fds=[there.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        there.close()

    def rows(self, patience: float, task: Task | None = None) -> Iterator[Row]:
        """Sends a task, and yields the rows of it; without a task, waits until the worker is ready.

        Raises:
            _Died: the worker has died, or sent nothing for `patience` seconds.
        """
        try:
            if task is not None:
                self._connection.send(task)
            while True:
                if not self._connection.poll(patience):
                    raise _Died(f"hung for {patience:.0f} s")
                row = self._connection.recv()
                if row is None:
                    return
                yield row
        except (EOFError, ConnectionError) as error:
            raise _Died(f"died, {self._status()}: {self._last_words()}") from error

    def _status(self) -> str:
        try:
            code = self._process.wait(EXIT_PATIENCE)
        except subprocess.TimeoutExpired:
            return "not yet gone"
        return f"signal {-code}" if code < 0 else f"status {code}"

    def _last_words(self) -> str:
        self._output.seek(0)
        lines = self._output.read().decode(errors="replace").splitlines()
        return " | ".join(line.strip() for line in lines[-3:] if line.strip())[-LAST_WORDS:]

    def stop(self) -> None:
        """Kills the process, which may hang."""
        self._connection.close()
        self._process.kill()
        # The driver may keep the process while a kernel runs.
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(EXIT_PATIENCE)
        self._output.close()


class Supervisor:
    """Goes through tasks until they are done or the time is up; `left_out` are those that were not done."""

    def __init__(
        self,
        tasks: Sequence[Task],
        seconds: float = float("inf"),
        patience: float = PATIENCE,
        command: Sequence[str] = WORKER,
    ) -> None:
        self._tasks = list(tasks)
        self._seconds = seconds
        self._patience = patience
        self._command = command
        self.left_out: list[Task] = []

    def rows(self) -> Iterator[Row]:
        """The rows of every task, as soon as they are there.

        Raises:
            RuntimeError: a worker does not start, or too many have died.
        """
        end = time.monotonic() + self._seconds
        deaths = 0
        worker: _Worker | None = None
        try:
            for position, task in enumerate(self._tasks):
                if time.monotonic() >= end:
                    self.left_out = self._tasks[position:]
                    return
                if worker is None:
                    worker = self._started()
                patience = min(self._patience, max(0.0, end + GRACE - time.monotonic()))
                problems = False
                try:
                    for row in worker.rows(patience, task):
                        problems |= row.status != OK
                        yield row
                except _Died as death:
                    worker.stop()
                    worker = None
                    if time.monotonic() >= end:
                        self.left_out = self._tasks[position:]
                        return
                    deaths += 1
                    # If a row has a problem, that may be what the worker died of, and no other row need say
                    # so.
                    if not problems:
                        yield row_of(task.case, task.provider, "step", Verdict(str(death)))
                    if deaths == MOST_DEATHS:
                        self.left_out = self._tasks[position + 1 :]
                        raise RuntimeError(f"{deaths} workers have died") from death
        finally:
            if worker is not None:
                worker.stop()

    def _started(self) -> _Worker:
        worker = _Worker(self._command)
        try:
            list(worker.rows(START_PATIENCE))
        except _Died as death:
            worker.stop()
            raise RuntimeError(f"the benchmark's worker does not start: {death}") from death
        return worker

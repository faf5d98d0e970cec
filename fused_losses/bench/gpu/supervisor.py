"""Has a process do tasks, and another those behind one that killed it or that it hung in."""

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

# Without a word from the worker, it hangs: torch.compile takes up to half a minute for a loss.
PATIENCE = 60.0

# Torch, Triton and the kernels' library, from a cold disk.
START_PATIENCE = 120.0

# From its last word to its end, which takes the memory of a GPU apart.
EXIT_PATIENCE = 10.0

# A task that is at work when the time is up may go on for so long; most are done by then.
GRACE = 10.0

# Of workers one after the other: more of them, and what fails is the machine, not the tasks.
MOST_DEATHS = 25

# Of what a worker has written before it died: its last words are what a device's assertion says.
LAST_WORDS = 300


class _Died(Exception):
    """A worker is no more, or of no use; the message says why."""


class _Worker:
    """A process, and what it says."""

    def __init__(self, command: Sequence[str]) -> None:
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 - `stop` closes it
        mine, its = Pipe()
        self._connection: Connection = mine
        # Strict: torch's function must not be timed under our name. One process compiles a kernel or two at a
        # time; a pool of them for each core would take longer to start.
        usual = {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
        environment = {**usual, **os.environ, "FUSED_LOSSES_STRICT": "1"}
        self._process = subprocess.Popen(
            [*command, str(its.fileno())],
            pass_fds=[its.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        its.close()

    def rows(self, patience: float, task: Task | None = None) -> Iterator[Row]:
        """What it answers to a task; without one, nothing, when it is ready."""
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
        """At once: it may hang."""
        self._connection.close()
        self._process.kill()
        # A driver may not let it go while a kernel runs.
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
                    # The last row may have said what the GPU did not get over.
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

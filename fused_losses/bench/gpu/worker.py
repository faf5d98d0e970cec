"""The process that does a run's tasks in turn: ``python -m fused_losses.bench.gpu.worker SOCKET``.

It receives a task, sends its rows and, when the task is done, None. A task that kills it, or leaves the GPU
in a state of error, is thus its last.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection

from fused_losses.bench.accuracy import Verdict
from fused_losses.bench.cases import Case
from fused_losses.bench.gpu.clock import Clock, clock_of
from fused_losses.bench.gpu.measure import Bench, release, warm
from fused_losses.bench.measured import row_of
from fused_losses.bench.rows import Row
from fused_losses.bench.timing import one_line


@dataclass(frozen=True)
class Task:
    """A provider on a case, to be measured."""

    case: Case
    provider: str
    is_warming: bool = False
    """Whether it is to be called once instead, to fill the caches of what it compiles."""


class _Worker:
    """Does tasks, and keeps what those of one case share: a `Bench`, or the reason why there is none."""

    def __init__(self) -> None:
        self._clock: Clock | None = None
        self._case: Case | None = None
        self._bench: Bench | str = ""

    def rows(self, task: Task) -> Iterator[Row]:
        if task.is_warming:
            yield from warm(task.case, task.provider)
            release(task.case.device)
            return
        clock = self._clock = self._clock or clock_of(task.case.device)
        if self._case != task.case:
            self._case, self._bench = task.case, ""
            release(task.case.device)
            try:
                self._bench = Bench(task.case, clock)
            except Exception as error:
                self._bench = f"no reference: {one_line(error)}"
        if isinstance(self._bench, str):
            yield row_of(task.case, task.provider, "step", Verdict(self._bench))
        else:
            yield from self._bench.rows(task.provider)
        release(task.case.device)
        clock.check()


def main(connection: Connection) -> None:
    """Does tasks until no more come."""
    warnings.simplefilter("ignore")
    worker = _Worker()
    connection.send(None)
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        for row in worker.rows(task):
            connection.send(row)
        connection.send(None)


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])))

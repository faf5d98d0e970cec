"""Clocks: of a GPU's kernels, by events; and of the host, by which a run is rehearsed without a GPU."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch

from fused_losses.bench.timing import Contender, Samples, seconds_per_call

# The fewest rounds from which deciles can be told, and the most, since more of them hardly move a median.
LEAST_ROUNDS, MOST_ROUNDS = 7, 40

# Untimed rounds, after which torch's allocator has all memory that the work needs.
WARM_UP_ROUNDS = 2

# How many times the size of the last-level cache is read between rounds: no policy of replacement keeps
# inputs in the cache through so much.
SWEEPS = 4

# Cycles of a pause of the GPU by which the length of a cycle is measured: some 5 ms.
CALIBRATION_CYCLES = 10_000_000

# The pause before a round lasts PAUSE_FACTOR times as long as launching the work took last, and at least
# LEAST_PAUSE seconds, which a few launches take. It grows where the host was late, up to MOST_PAUSE seconds:
# launches that take longer wait for the GPU.
PAUSE_FACTOR, LEAST_PAUSE, MOST_PAUSE = 2.0, 50e-6, 0.1


@dataclass(frozen=True)
class Timing:
    """Seconds per call: those of the kernels, and those of the host, which launches them.

    ``late`` is the number of rounds in which the GPU had to wait for the host to launch something: where it
    is not 0, the kernels' times have gaps in them.
    """

    kernels: Samples
    host: Samples
    late: int = 0


class Clock(Protocol):
    """Measures time and memory on a device."""

    def time(self, contender: Contender, seconds: float) -> Timing:
        """Times as many rounds as begin within the seconds, from LEAST_ROUNDS to MOST_ROUNDS."""

    def check(self) -> None:
        """Raises the errors of work that the device has been given and has not reported yet."""

    @contextmanager
    def weigh(self) -> Iterator[list[int]]:
        """Measures the peak of memory within the `with` block, beyond what was in use before.

        Yields a list to which the peak in bytes is appended at the end; it stays empty if nothing is
        measured.
        """


class HostClock:
    """A clock for devices whose work is done when a call returns."""

    def time(self, contender: Contender, seconds: float) -> Timing:
        """The host's time stands for the kernels', too."""
        seconds_per_call(contender, 0)
        deadline = time.perf_counter() + seconds
        found: list[float] = []
        while len(found) < LEAST_ROUNDS or (len(found) < MOST_ROUNDS and time.perf_counter() < deadline):
            found.append(seconds_per_call(contender, len(found)))
        return Timing(Samples(found), Samples(found))

    def check(self) -> None:
        """Does nothing: errors have been raised by the calls."""

    @contextmanager
    def weigh(self) -> Iterator[list[int]]:
        """Measures nothing."""
        yield []


class GpuClock:
    """Times kernels between two events behind a pause, in which the host launches all of them.

    So the time is the GPU's alone, however long Python takes. Between rounds, more memory is read than the
    last-level cache holds. It is not written, since writes would go on to memory later, at the work's
    expense.
    """

    def __init__(self) -> None:
        numbers = SWEEPS * torch.cuda.get_device_properties().L2_cache_size // 4
        self._swept = torch.zeros(numbers, dtype=torch.float32, device="cuda")
        for _ in range(2):  # the first pause includes loading the kernel
            start, end = _events()
            start.record()
            torch.cuda._sleep(CALIBRATION_CYCLES)
            end.record()
            end.synchronize()
        self._frequency = CALIBRATION_CYCLES / (start.elapsed_time(end) * 1e-3)

    def time(self, contender: Contender, seconds: float) -> Timing:
        """The times of the rounds in which the host was ahead, if there were enough of them, else of all."""
        pause = LEAST_PAUSE
        for round_ in range(WARM_UP_ROUNDS):
            _, host, _ = self._round(contender, round_, pause)
            pause = LEAST_PAUSE + PAUSE_FACTOR * host
        deadline = time.perf_counter() + seconds
        ahead: list[tuple[float, float]] = []
        late: list[tuple[float, float]] = []
        while len(ahead) < MOST_ROUNDS:
            rounds = len(ahead) + len(late)
            if rounds >= LEAST_ROUNDS and time.perf_counter() > deadline:
                break
            kernels, host, was_ahead = self._round(contender, rounds, min(pause, MOST_PAUSE))
            (ahead if was_ahead else late).append((kernels, host))
            if not was_ahead:
                pause *= PAUSE_FACTOR
        enough = len(ahead) >= LEAST_ROUNDS
        pairs = ahead if enough else ahead + late
        per_call = [[each / contender.batch for each in column] for column in zip(*pairs, strict=True)]
        return Timing(Samples(per_call[0]), Samples(per_call[1]), 0 if enough else len(late))

    def _round(self, contender: Contender, round_: int, pause: float) -> tuple[float, float, bool]:
        """Seconds of the kernels, seconds of the host, and whether the host was done before kernels began."""
        work = contender.prepare(round_)
        start, end = _events()
        self._swept.sum()
        torch.cuda._sleep(int(pause * self._frequency))
        start.record()
        began = time.perf_counter()
        work()
        host = time.perf_counter() - began
        end.record()
        # If the event after the pause has not happened yet, all kernels were launched during the pause.
        was_ahead = not start.query()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3, host, was_ahead

    def check(self) -> None:
        """Waits for the device, which raises its failed assertions then."""
        torch.cuda.synchronize()

    @contextmanager
    def weigh(self) -> Iterator[list[int]]:
        """Measures the peak by torch's allocator."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        found: list[int] = []
        yield found
        torch.cuda.synchronize()
        found.append(torch.cuda.max_memory_allocated() - before)


def _events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)


def clock_of(device: str) -> Clock:
    """The clock for a type of device."""
    return GpuClock() if device == "cuda" else HostClock()

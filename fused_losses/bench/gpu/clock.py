"""Times of kernels, by events on a GPU; where there is none, the host's, so that a run can be rehearsed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch

from fused_losses.bench.timing import Contender, Samples, seconds_per_call

# The least of which deciles mean something, and more than which add nothing.
LEAST_ROUNDS, MOST_ROUNDS = 7, 40

# Untimed rounds, after which torch's allocator has all memory that the work needs.
WARM_UP_ROUNDS = 2

# Read between rounds, times the last-level cache: no policy of replacement keeps inputs through so much.
SWEEPS = 4

# Cycles for which the GPU pauses to tell how long one lasts: some 5 ms.
CALIBRATION_CYCLES = 10_000_000

# The pause before a round is so many times what launching the work took last, and at least as long as a few
# launches take. It grows where the host was late, up to what no launches last that do not wait for the GPU.
PAUSE_FACTOR, LEAST_PAUSE, MOST_PAUSE = 2.0, 50e-6, 0.1


@dataclass(frozen=True)
class Timing:
    """Seconds per call: of the kernels, and of the host, which launches them.

    ``late`` is the number of rounds in which the host had not launched everything before the GPU came to it:
    where it is not 0, the kernels' times have gaps in them.
    """

    kernels: Samples
    host: Samples
    late: int = 0


class Clock(Protocol):
    """Of a device."""

    def time(self, contender: Contender, seconds: float) -> Timing:
        """As many rounds as begin within the seconds, but at least 7."""

    def check(self) -> None:
        """Raises what the device has not said yet of the work that it was given."""

    @contextmanager
    def weigh(self) -> Iterator[list[int]]:
        """Within it, memory is counted: the list then has the peak beyond what was there, in bytes."""


class HostClock:
    """Work is done when the call returns."""

    def time(self, contender: Contender, seconds: float) -> Timing:
        """The host's time is all there is."""
        seconds_per_call(contender, 0)
        deadline = time.perf_counter() + seconds
        found: list[float] = []
        while len(found) < LEAST_ROUNDS or (len(found) < MOST_ROUNDS and time.perf_counter() < deadline):
            found.append(seconds_per_call(contender, len(found)))
        return Timing(Samples(found), Samples(found))

    def check(self) -> None:
        """Nothing is left to say."""

    @contextmanager
    def weigh(self) -> Iterator[list[int]]:
        """Not measured."""
        yield []


class GpuClock:
    """Kernels run between two events behind a pause, in which the host launches all of them.

    What is timed is thus the GPU alone, however long Python takes. Between rounds, more memory is read than
    the last-level cache holds. It is not written: what is would go to memory later, at the work's expense.
    """

    def __init__(self) -> None:
        numbers = SWEEPS * torch.cuda.get_device_properties().L2_cache_size // 4
        self._swept = torch.zeros(numbers, dtype=torch.float32, device="cuda")
        for _ in range(2):  # the first has to load the kernel
            start, end = _events()
            start.record()
            torch.cuda._sleep(CALIBRATION_CYCLES)
            end.record()
            end.synchronize()
        self._frequency = CALIBRATION_CYCLES / (start.elapsed_time(end) * 1e-3)

    def time(self, contender: Contender, seconds: float) -> Timing:
        """Of rounds in which the host was ahead, if there were enough of them."""
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
        """Seconds of the kernels, of the host, and whether the host was done before they began."""
        work = contender.prepare(round_)
        start, end = _events()
        self._swept.sum()
        torch.cuda._sleep(int(pause * self._frequency))
        start.record()
        began = time.perf_counter()
        work()
        host = time.perf_counter() - began
        end.record()
        # The pause ends before the first event: if that has not happened yet, all else has been launched.
        was_ahead = not start.query()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3, host, was_ahead

    def check(self) -> None:
        """A device's assertion comes to light where the host waits for it."""
        torch.cuda.synchronize()

    @contextmanager
    def weigh(self) -> Iterator[list[int]]:
        """As torch's allocator counts it."""
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
    """The clock of a type of device."""
    return GpuClock() if device == "cuda" else HostClock()

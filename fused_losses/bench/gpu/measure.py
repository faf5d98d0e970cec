"""Verifies, weighs and times one provider after the other on a case, by a clock of the device."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace

import torch

from fused_losses.bench.accuracy import Judge, Verdict
from fused_losses.bench.cases import Case, Pass
from fused_losses.bench.gpu.clock import Clock, Timing
from fused_losses.bench.measured import row_of
from fused_losses.bench.providers import (
    COMPILE,
    PEERS,
    PRODUCTS,
    PROVIDERS,
    UNAVAILABLE,
    LossFn,
    Provider,
    Unavailable,
)
from fused_losses.bench.rows import MIB, Row
from fused_losses.bench.summary import Ratios
from fused_losses.bench.timing import (
    POOL,
    batch_size,
    copy_contender,
    fresh,
    gradients,
    loss_contender,
    one_line,
    prepare,
    products_contender,
)
from fused_losses.samples import Inputs

# Seconds for the rounds of each provider and pass: enough for all rounds of work of a few milliseconds.
SECONDS = 0.15

# The most calls behind one pause. A queue has room for about 1000 launches, and eager torch makes up to 40 in
# a step: the host must never wait for room.
MOST_CALLS = 20

# Positions of the operands on which a loss's derivative does not depend, so that a backward need not read
# them.
_UNREAD: dict[str, tuple[int, ...]] = {"kl_div": (0,), "nll_loss": (0,)}


def passes_of(case: Case, provider: Provider) -> list[Pass]:
    """The passes that are timed: a step, and for this package's strategies, the pass that does the work.

    The forward of "fused" writes the gradient, and its backward has nothing left to do; the backward of
    "recompute" reads and writes as much.
    """
    by_strategy: dict[str | None, list[Pass]] = {"fused": ["training-forward"], "recompute": ["backward"]}
    return ["step", *(by_strategy.get(provider.backward, []) if case.head is None else [])]


def least_bytes(case: Case, pass_: Pass, inputs: Inputs) -> int | None:
    """The fewest bytes that a pass of `passes_of` must move: inputs read once, gradients written once."""
    moved = case.bytes_moved("step", inputs)
    if moved is None or pass_ != "backward":
        return moved
    unread = _UNREAD.get(case.loss, ())
    read = sum(x.nbytes for index, x in enumerate(inputs) if index not in unread)
    return read + sum(inputs[index].nbytes for index in case.description.trained)


class Bench:
    """A case on a device: its inputs, its results in float64, and how long copies of its bytes take."""

    def __init__(self, case: Case, clock: Clock) -> None:
        self._case = case
        self._clock = clock
        self._pool = [case.inputs(seed) for seed in range(POOL)]
        self._judge = Judge(case, "step", self._pool)
        self._floors: dict[int | None, Timing] = {}

    def rows(self, name: str) -> Iterator[Row]:
        """A row for each pass of a provider, or one that says why there is none."""
        try:
            yield from self._products() if name == PRODUCTS else self._rows(name)
        except Unavailable as reason:
            yield row_of(self._case, name, "step", Verdict(UNAVAILABLE + str(reason)))
        except Exception as error:
            yield row_of(self._case, name, "step", Verdict(one_line(error)))

    def _products(self) -> Iterator[Row]:
        floor = self._floor(None)
        row = row_of(self._case, PRODUCTS, "step", Verdict(), floor.kernels, floor=floor.kernels)
        yield replace(row, host_ms=floor.host.median * 1e3, note=self._note(floor))

    def _rows(self, name: str) -> Iterator[Row]:
        provider = PROVIDERS[name]
        with provider.kernels(self._case.device) as kernels:
            function = provider.make(self._case)
            verdict = self._judge.verdict(function)
            if verdict.seconds is None or (provider.is_own and verdict.problem):
                yield replace(row_of(self._case, name, "step", verdict), kernels=kernels)
                return
            peak = self._peak(function)
            for pass_ in passes_of(self._case, provider):
                row = self._row(name, pass_, function, verdict)
                yield replace(row, kernels=kernels, peak_mib=peak if pass_ == "step" else None)

    def _row(self, name: str, pass_: Pass, function: LossFn, verdict: Verdict) -> Row:
        batch = min(MOST_CALLS, batch_size(self._case.numel, verdict.seconds))
        timing = self._clock.time(loss_contender(pass_, function, self._pool, batch), SECONDS)
        moved = least_bytes(self._case, pass_, self._pool[0])
        floor = self._floor(moved).kernels
        row = row_of(
            self._case,
            name,
            pass_,
            verdict,
            timing.kernels,
            ratios=Ratios(None, None, timing.kernels.median / floor.median),
            bytes_moved=moved,
            copy=None if moved is None else floor,
            floor=floor,
        )
        return replace(row, host_ms=timing.host.median * 1e3, note=self._note(timing))

    def _floor(self, moved: int | None) -> Timing:
        """The times of a copy that moves so many bytes; without a number, of the layer's matrix products."""
        if moved not in self._floors:
            batch = min(MOST_CALLS, batch_size(self._case.numel))
            contender = (
                products_contender(self._pool[0])
                if moved is None
                else copy_contender(moved, batch, self._case.device)
            )
            self._floors[moved] = self._clock.time(contender, SECONDS)
        return self._floors[moved]

    def _peak(self, function: LossFn) -> float | None:
        """The peak of a step beyond its inputs, in MiB; None if the clock does not measure it."""
        step = prepare("step", function, [fresh(self._pool[0])])
        gc.collect()
        with self._clock.weigh() as found:
            step()
        return found[0] / MIB if found else None

    def _note(self, timing: Timing) -> str:
        """What limits the worth of a row's numbers."""
        notes = []
        if timing.late:
            notes.append(f"host late in {timing.late} of {len(timing.kernels.seconds)} rounds")
        if self._case.parts > 1:
            rows = self._case.shape[0] // self._case.parts
            notes.append(f"{self._case.parts} times the same {rows} rows, of which float64 is known")
        return "; ".join(notes)


def warm(case: Case, name: str) -> Iterator[Row]:
    """Runs a step, so that what it compiles is in the caches on disk; yields a row only if it fails."""
    provider = PROVIDERS[name]
    try:
        with provider.kernels(case.device):
            function = provider.make(case)
            inputs = fresh(case.inputs(seed=0))
            gradients(function(*inputs), inputs)
    except Unavailable as reason:
        yield row_of(case, name, "step", Verdict(UNAVAILABLE + str(reason)))
    except Exception as error:
        yield row_of(case, name, "step", Verdict(one_line(error)))


def compiles(name: str) -> bool:
    """Whether a provider compiles when it is called, into a cache."""
    return name in (COMPILE, *PEERS) or (name in PROVIDERS and PROVIDERS[name].backend == "triton")


def release(device: str) -> None:
    """Gives memory that is no longer needed back to the device."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()

"""Times providers in turn, each call on inputs that nobody has touched before."""

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from fused_losses.bench.cases import Inputs, Pass
from fused_losses.bench.providers import LossFn

# A sample covers about a million elements, in at most 200 calls: a call on 320 elements lasts some
# 20 us and is timed 200 at a time, a call on 8M lasts milliseconds and is timed alone.
SAMPLE_ELEMENTS = 2**20
MAX_BATCH = 200

# Distinct inputs that the calls rotate through, so that no branch or page is learnt by heart.
POOL = 3

# Untimed rounds: allocators, caches and thread pools have settled after two. Compilation has
# happened before, when the results were verified.
WARM_UP_ROUNDS = 2

Work = Callable[[], None]
Contender = Callable[[int], Work]


@dataclass(frozen=True)
class Samples:
    """Seconds per call, one sample per round; samples of one round belong together."""

    seconds: list[float]

    @property
    def median(self) -> float:
        """Median, in seconds."""
        return statistics.median(self.seconds)

    @property
    def p10_p90(self) -> tuple[float, float]:
        """The 10th and 90th percentile, in seconds."""
        deciles = statistics.quantiles(self.seconds, n=10, method="inclusive")
        return deciles[0], deciles[-1]

    def speedup_over(self, other: "Samples") -> float:
        """How many times faster than ``other``: the median of the ratios of the rounds."""
        pairs = zip(self.seconds, other.seconds, strict=True)
        return statistics.median(theirs / mine for mine, theirs in pairs)


def batch_size(numel: int) -> int:
    """Calls per sample for inputs of ``numel`` elements."""
    return max(1, min(MAX_BATCH, SAMPLE_ELEMENTS // numel))


def fresh(inputs: Inputs) -> Inputs:
    """The inputs with a non-leaf copy of the first, as logits that a layer has just computed.

    The in-place strategy overwrites it and may not do that to a leaf; everybody gets the same.
    """
    return inputs[0].clone(), *inputs[1:]


def gradient(loss: Tensor, inputs: Inputs) -> Tensor:
    """Gradient of ``loss`` with respect to the first input."""
    return torch.autograd.grad(loss, inputs[0])[0]


def prepare(pass_: Pass, function: LossFn, batch: list[Inputs]) -> Work:
    """The work to time: every call of a batch, its results freed as soon as they are there.

    * forward: the loss alone, as in evaluation, under no_grad.
    * backward: the gradient alone; the forward has run before the clock starts.
    * step: both, as in training.
    """

    def forward() -> None:
        with torch.no_grad():
            for inputs in batch:
                function(*inputs)

    def step() -> None:
        for inputs in batch:
            gradient(function(*inputs), inputs)

    if pass_ == "forward":
        return forward
    if pass_ == "step":
        return step
    losses = [function(*inputs) for inputs in batch]

    def backward() -> None:
        for inputs in reversed(batch):
            gradient(losses.pop(), inputs)

    return backward


def loss_contender(pass_: Pass, function: LossFn, pool: Sequence[Inputs]) -> Contender:
    """A provider, for `interleave`."""
    batch = batch_size(pool[0][0].numel())

    def contend(round_: int) -> Work:
        first = round_ * batch
        inputs = [fresh(pool[(first + call) % len(pool)]) for call in range(batch)]
        return prepare(pass_, function, inputs)

    return contend


def copy_contender(bytes_moved: int, numel: int) -> Contender:
    """The yardstick: torch's copy of as many bytes, half read and half written, in warm memory."""
    source = torch.zeros(bytes_moved // 2, dtype=torch.uint8)
    target = torch.zeros_like(source)
    batch = batch_size(numel)

    def contend(_: int) -> Work:
        # The inputs of the losses have been written just before the clock starts: so is this.
        source.fill_(1)
        target.fill_(0)

        def work() -> None:
            for _ in range(batch):
                target.copy_(source)

        return work

    return contend


def interleave(contenders: dict[str, Contender], rounds: int, batch: int) -> dict[str, Samples]:
    """Times every contender once per round, the order rotating, preparation not counted.

    What disturbs the machine for longer than a round thus disturbs everybody alike.
    """
    names = list(contenders)
    samples: dict[str, list[float]] = {name: [] for name in names}
    with _no_gc():
        for round_ in range(-WARM_UP_ROUNDS, rounds):
            turn = round_ % len(names)
            for name in names[turn:] + names[:turn]:
                work = contenders[name](round_)
                start = time.perf_counter_ns()
                work()
                seconds = (time.perf_counter_ns() - start) * 1e-9
                if round_ >= 0:
                    samples[name].append(seconds / batch)
    return {name: Samples(seconds) for name, seconds in samples.items()}


@contextmanager
def _no_gc() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()

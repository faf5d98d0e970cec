"""Times providers in turn, each call on inputs that nobody has touched before."""

import gc
import math
import statistics
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from fused_losses.bench.cases import Pass
from fused_losses.bench.providers import LossFn
from fused_losses.bench.variants import strided_copy
from fused_losses.linear.products import choose_logits_dtype
from fused_losses.samples import Inputs

# A sample covers about a million elements, in at most 200 calls: a call on 320 elements lasts some
# 20 us and is timed 200 at a time, a call on 8M lasts milliseconds and is timed alone.
SAMPLE_ELEMENTS = 2**20
MAX_BATCH = 200

# The most seconds of a sample: some calls take far longer than their number of elements suggests (compiled
# multilabel_margin_loss compares all classes with all classes), and fewer of them are timed at a time.
SAMPLE_SECONDS = 0.5

# Distinct inputs that the calls take in turn, so that branch predictors and caches do not learn one of them.
POOL = 3

# Characters of an exception's text that are kept: torch's texts may list every backend there is.
STATUS_WIDTH = 150

# Untimed rounds: allocators, caches and thread pools have settled after two. Compilation has
# happened before, when the results were verified.
WARM_UP_ROUNDS = 2

Work = Callable[[], None]


@dataclass(frozen=True)
class Contender:
    """Something that is timed: makes the work of a round, given its number; and how many calls that is."""

    prepare: Callable[[int], Work]
    batch: int


@dataclass(frozen=True)
class Pace:
    """How many rounds to time: as many as begin within `seconds`, but at least and at most so many."""

    at_least: int
    at_most: int
    seconds: float
    warm_up: int = WARM_UP_ROUNDS


@dataclass(frozen=True)
class Samples:
    """Seconds per call, one sample for each round. Samples with the same index are from the same round."""

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
        return statistics.median(other_time / time_ for time_, other_time in pairs)


def batch_size(numel: int, seconds: float | None = None) -> int:
    """Calls per sample for inputs of ``numel`` elements, given how long a call lasts if that is known."""
    fitting = MAX_BATCH if seconds is None else int(SAMPLE_SECONDS / seconds)
    return max(1, min(MAX_BATCH, SAMPLE_ELEMENTS // numel, fitting))


def one_line(error: Exception) -> str:
    """An exception's type and the first line of its text, as short as a table's cell."""
    text = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return textwrap.shorten(text, STATUS_WIDTH)


def fresh(inputs: Inputs) -> Inputs:
    """The inputs with a copy of the first, which is no leaf, as logits that a layer has just computed.

    The strategy in place overwrites it, and may not do that to a leaf; all providers get the same. A slice,
    which `clone` would make dense, stays a slice, and is a leaf.
    """
    first = inputs[0]
    if first.is_contiguous():
        return first.clone(), *inputs[1:]
    size = first.untyped_storage().nbytes() // first.element_size()
    return strided_copy(first, first.stride(), int(first.storage_offset()), size), *inputs[1:]


def gradients(loss: Tensor, inputs: Inputs) -> tuple[Tensor, ...]:
    """Gradients of ``loss`` with respect to the inputs that require them."""
    return torch.autograd.grad(loss, [tensor for tensor in inputs if tensor.requires_grad])


def prepare(pass_: Pass, function: LossFn, batch: list[Inputs]) -> Work:
    """The work to time: every call of a batch, each result freed as soon as it is there.

    * forward: the loss alone, as in evaluation, under no_grad.
    * training-forward: the loss where a backward is to follow, and whatever of the backward the forward does.
    * backward: the gradients alone; the forward has run before the clock starts.
    * step: both, as in training.
    """

    def forward() -> None:
        with torch.no_grad():
            for inputs in batch:
                function(*inputs)

    def training_forward() -> None:
        for inputs in batch:
            function(*inputs)

    def step() -> None:
        for inputs in batch:
            gradients(function(*inputs), inputs)

    if pass_ == "forward":
        return forward
    if pass_ == "training-forward":
        return training_forward
    if pass_ == "step":
        return step
    losses = [function(*inputs) for inputs in batch]

    def backward() -> None:
        for inputs in reversed(batch):
            gradients(losses.pop(), inputs)

    return backward


def loss_contender(pass_: Pass, function: LossFn, pool: Sequence[Inputs], batch: int) -> Contender:
    """A provider's pass, `batch` calls at a time."""

    def contend(round_: int) -> Work:
        first = round_ * batch
        inputs = [fresh(pool[(first + call) % len(pool)]) for call in range(batch)]
        return prepare(pass_, function, inputs)

    return Contender(contend, batch)


def copy_contender(bytes_moved: int, batch: int, device: str) -> Contender:
    """Torch's copy of as many bytes as must move, half of them read and half written, in warm memory."""
    source = torch.zeros(bytes_moved // 2, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)

    def contend(_: int) -> Work:
        # A loss's inputs have been written just before the clock starts, and so are the copy's.
        source.fill_(1)
        target.fill_(0)

        def work() -> None:
            for _ in range(batch):
                target.copy_(source)

        return work

    return Contender(contend, batch)


def products_contender(inputs: Inputs) -> Contender:
    """The floor of a loss behind a linear layer: the layer's three products, into memory that is there.

    Where a CPU has no instructions for products of 16 bits, they are in float32, since torch emulates the
    others many times slower.
    """
    hidden, weight = (tensor.detach() for tensor in inputs[:2])
    dtype = choose_logits_dtype(hidden.dtype, hidden.device)
    hidden, weight = hidden.to(dtype), weight.to(dtype)
    logits_shape = hidden.shape[0], weight.shape[0]
    batch = batch_size(math.prod(logits_shape))

    def contend(_: int) -> Work:
        # Results are filled in advance, so that no page is missing, and freed when the work is done.
        logits = hidden.new_empty(logits_shape).fill_(1)
        hidden_gradient, weight_gradient = torch.ones_like(hidden), torch.ones_like(weight)

        def work() -> None:
            for _ in range(batch):
                torch.mm(hidden, weight.t(), out=logits)
                # The logits stand for their gradient: a product takes as long whatever the numbers.
                torch.mm(logits, weight, out=hidden_gradient)
                torch.mm(logits.t(), hidden, out=weight_gradient)

        return work

    return Contender(contend, batch)


def interleave(
    contenders: dict[str, Contender], pace: Pace
) -> tuple[dict[str, Samples], dict[str, Exception]]:
    """Times every contender once in each round, in an order that rotates, without its preparation.

    So what disturbs the machine for longer than a round disturbs all of them alike.

    Returns:
        The samples of those that finished, and what the others raised.
    """
    names = list(contenders)
    samples: dict[str, list[float]] = {name: [] for name in names}
    failures: dict[str, Exception] = {}
    deadline = 0.0
    with _no_gc():
        for round_ in range(-pace.warm_up, pace.at_most):
            if round_ == 0:
                deadline = time.perf_counter() + pace.seconds
            if round_ >= pace.at_least and time.perf_counter() > deadline:
                break
            turn = round_ % len(names)
            for name in names[turn:] + names[:turn]:
                if name in failures:
                    continue
                try:
                    seconds = seconds_per_call(contenders[name], round_)
                except Exception as error:
                    failures[name] = error
                    continue
                if round_ >= 0:
                    samples[name].append(seconds)
    return {name: Samples(samples[name]) for name in names if name not in failures}, failures


def seconds_per_call(contender: Contender, round_: int) -> float:
    """The seconds of a call by the host's clock, without the preparation of the round."""
    work = contender.prepare(round_)
    start = time.perf_counter_ns()
    work()
    return (time.perf_counter_ns() - start) * 1e-9 / contender.batch


@contextmanager
def _no_gc() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()

"""One run: verifies, times and weighs every provider on every case."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

from fused_losses.bench import memory
from fused_losses.bench.accuracy import Judge, Verdict
from fused_losses.bench.cases import Case, Pass
from fused_losses.bench.measured import row_of
from fused_losses.bench.providers import (
    COMPILE,
    EAGER,
    PRODUCTS,
    PROVIDERS,
    UNAVAILABLE,
    Unavailable,
    serving,
)
from fused_losses.bench.rows import Row
from fused_losses.bench.summary import Ratios
from fused_losses.bench.timing import (
    POOL,
    WARM_UP_ROUNDS,
    Pace,
    Samples,
    batch_size,
    copy_contender,
    interleave,
    loss_contender,
    one_line,
    products_contender,
)

COPY = "copy"


# The fewest rounds from which deciles can be told, and the most, since more of them hardly move a median.
LEAST_ROUNDS, MOST_ROUNDS = 7, 30

# The fewest rounds for losses behind a linear layer, a step of which lasts seconds: three matrix products are
# most of every provider's time, so there is less to tell apart. Their verification has warmed them up.
HEAD_ROUNDS = 3

# Called with what is about to happen, before each of `Plan.stages_per_case` stages.
Announce = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What a run does with every case."""

    providers: list[str]
    pass_: Pass
    rounds: int | None
    """How many rounds; None for as many as fit into `seconds`."""
    seconds: float
    threads: int
    memory: bool
    """Whether to measure peak memory."""

    @property
    def stages_per_case(self) -> int:
        """Stages that `measure` announces: verify, time and, if asked for, weigh."""
        return 3 if self.memory else 2

    def pace(self, case: Case) -> Pace:
        """The rounds that were asked for, or the usual number for a case."""
        warm_up = 0 if case.head is not None and case.size == "large" else WARM_UP_ROUNDS
        if self.rounds is not None:
            return Pace(self.rounds, self.rounds, self.seconds, warm_up)
        if case.head is not None:
            return Pace(HEAD_ROUNDS, MOST_ROUNDS, self.seconds, warm_up)
        return Pace(LEAST_ROUNDS, MOST_ROUNDS, self.seconds)


@dataclass(frozen=True)
class _Findings:
    """What was measured on a case: times and peaks in bytes by provider, and the fewest bytes to move."""

    samples: dict[str, Samples]
    bytes_moved: int | None
    peaks: dict[str, int | None]


_NOTHING = _Findings({}, None, {})


def measure(case: Case, plan: Plan, announce: Announce) -> list[Row]:
    """A row for each provider. An exception does not end the run, but becomes the status of a row."""
    try:
        return _measure(case, plan, announce)
    except Exception as error:
        # Without a reference, no provider can be judged.
        failed = Verdict(f"no reference: {one_line(error)}")
        return [_row(case, plan, name, failed, _NOTHING) for name in serving(case, plan.providers)]


def _measure(case: Case, plan: Plan, announce: Announce) -> list[Row]:
    pool = [case.inputs(seed) for seed in range(POOL)]
    names = serving(case, plan.providers)
    functions, verdicts = {}, {}
    for name in names:
        try:
            functions[name] = PROVIDERS[name].make(case)
        except Unavailable as reason:
            verdicts[name] = Verdict(UNAVAILABLE + str(reason))

    announce(f"verify {case}")
    most_bytes = memory.RUN_BYTES if case.head is None else memory.HEADS_BYTES
    judge = Judge(case, plan.pass_, pool)
    for name, function in functions.items():
        # Not while they are timed: where memory is limited, this package keeps none from step to step.
        with nullcontext() if PROVIDERS[name].is_own else memory.limited(most_bytes):
            verdicts[name] = judge.verdict(function)
    # The judge's copies of the inputs in float64 would only take memory from here on.
    del judge
    # Torch is timed even where the rule refuses its results (compiled sums are off by a few ulp), since they
    # are what users have.
    timed = [
        name
        for name, verdict in verdicts.items()
        if verdict.seconds is not None and not (PROVIDERS[name].is_own and verdict.problem)
    ]

    announce(f"time {case}")
    contenders = {
        name: loss_contender(
            plan.pass_, functions[name], pool, batch_size(case.numel, verdicts[name].seconds)
        )
        for name in timed
    }
    bytes_moved = case.bytes_moved(plan.pass_, pool[0])
    if bytes_moved is not None:
        contenders[COPY] = copy_contender(bytes_moved, batch_size(case.numel), case.device)
    if case.head is not None and plan.pass_ == "step":
        contenders[PRODUCTS] = products_contender(pool[0])
        names.append(PRODUCTS)
        verdicts[PRODUCTS] = Verdict()
    samples, failures = interleave(contenders, plan.pace(case))
    verdicts |= {name: Verdict(one_line(error)) for name, error in failures.items()}

    peaks: dict[str, int | None] = {}
    if plan.memory:
        announce(f"weigh {case}")
        peaks = {name: memory.peak_bytes(case, name, plan.threads) for name in timed}
    findings = _Findings(samples, bytes_moved, peaks)
    return [_row(case, plan, name, verdicts[name], findings) for name in names]


def _row(case: Case, plan: Plan, provider: str, verdict: Verdict, findings: _Findings) -> Row:
    samples = findings.samples
    timed, copy = samples.get(provider), samples.get(COPY)
    floor = samples.get(PRODUCTS, copy)

    def speedup(other: Samples | None) -> float | None:
        return None if timed is None or other is None else timed.speedup_over(other)

    over_floor = speedup(floor)
    return row_of(
        case,
        provider,
        plan.pass_,
        verdict,
        timed,
        ratios=Ratios(
            speedup(samples.get(EAGER)),
            speedup(samples.get(COMPILE)),
            None if over_floor is None else 1 / over_floor,
        ),
        bytes_moved=findings.bytes_moved,
        copy=copy,
        floor=floor,
        peak=findings.peaks.get(provider),
    )

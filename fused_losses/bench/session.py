"""One run: verifies, times and weighs every provider on every case."""

from collections.abc import Callable
from dataclasses import dataclass

from fused_losses.bench import memory
from fused_losses.bench.accuracy import Judge, Verdict
from fused_losses.bench.cases import Case, Pass
from fused_losses.bench.providers import (
    COMPILE,
    EAGER,
    PRODUCTS,
    PROVIDERS,
    UNAVAILABLE,
    Unavailable,
    serving,
)
from fused_losses.bench.report import MIB
from fused_losses.bench.rows import OK, Row
from fused_losses.bench.timing import (
    POOL,
    WARM_UP_ROUNDS,
    Pace,
    Samples,
    copy_contender,
    interleave,
    loss_contender,
    one_line,
    products_contender,
)

COPY = "copy"


# The least of which deciles mean something, and more than which add nothing.
LEAST_ROUNDS, MOST_ROUNDS = 7, 30

# Of losses behind a linear layer, a step of which lasts seconds: three matrix products are most of every
# provider's time, so there is less to tell apart. Their verification has warmed them up.
HEAD_ROUNDS = 3

# Called with what is about to happen, before each of `Plan.stages_per_case` stages.
Announce = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What a run does with every case."""

    providers: list[str]
    pass_: Pass
    rounds: int | None
    seconds: float
    threads: int
    memory: bool

    @property
    def stages_per_case(self) -> int:
        """Stages that `measure` announces: verify, time and, if asked for, weigh."""
        return 3 if self.memory else 2

    def pace(self, case: Case) -> Pace:
        """The rounds that were asked for, or those that are usual for a case."""
        warm_up = 0 if case.head is not None and case.size == "large" else WARM_UP_ROUNDS
        if self.rounds is not None:
            return Pace(self.rounds, self.rounds, self.seconds, warm_up)
        if case.head is not None:
            return Pace(HEAD_ROUNDS, MOST_ROUNDS, self.seconds, warm_up)
        return Pace(LEAST_ROUNDS, MOST_ROUNDS, self.seconds)


@dataclass(frozen=True)
class _Findings:
    """What is known of a case when all is done."""

    samples: dict[str, Samples]
    bytes_moved: int | None
    peaks: dict[str, int | None]


_NOTHING = _Findings({}, None, {})


def measure(case: Case, plan: Plan, announce: Announce) -> list[Row]:
    """A row per provider. Nothing that is raised ends the run: it is the status of a row."""
    try:
        return _measure(case, plan, announce)
    except Exception as error:
        # Nothing to judge anyone by.
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
    judge = Judge(case, plan.pass_, pool)
    verdicts |= {name: judge.verdict(function) for name, function in functions.items()}
    # 64-bit copies of the inputs, which the timing does not need.
    del judge
    # What torch gets wrong by the rule (compiled sums, by some ulp) is reported, but still what users have.
    timed = [
        name
        for name, verdict in verdicts.items()
        if verdict.seconds is not None and not (PROVIDERS[name].is_ours and verdict.problem)
    ]

    announce(f"time {case}")
    contenders = {
        name: loss_contender(plan.pass_, functions[name], pool, case.numel, verdicts[name].seconds)
        for name in timed
    }
    bytes_moved = case.bytes_moved(plan.pass_, pool[0])
    if bytes_moved is not None:
        contenders[COPY] = copy_contender(bytes_moved, case.numel, case.device)
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
    samples, bytes_moved = findings.samples, findings.bytes_moved
    mine, copy = samples.get(provider), samples.get(COPY)
    floor = samples.get(PRODUCTS, copy)
    seconds = (None, None, None) if mine is None else (mine.median, *mine.p10_p90)
    median_ms, p10_ms, p90_ms = (None if value is None else value * 1e3 for value in seconds)
    peak = findings.peaks.get(provider)

    def speedup(other: Samples | None) -> float | None:
        return None if mine is None or other is None else mine.speedup_over(other)

    def gbps(timed: Samples | None) -> float | None:
        if timed is None or bytes_moved is None:
            return None
        return bytes_moved / timed.median * 1e-9

    vs_floor = speedup(floor)
    return Row(
        loss=case.loss,
        size=case.size,
        shape=case.shape_text,
        dtype=case.dtype,
        provider=provider,
        pass_=plan.pass_,
        rounds=0 if mine is None else len(mine.seconds),
        status=verdict.problem or OK,
        median_ms=median_ms,
        p10_ms=p10_ms,
        p90_ms=p90_ms,
        vs_eager=speedup(samples.get(EAGER)),
        vs_compile=speedup(samples.get(COMPILE)),
        gbps=gbps(mine),
        copy_gbps=gbps(copy),
        floor_ms=None if floor is None else floor.median * 1e3,
        vs_floor=None if vs_floor is None else 1 / vs_floor,
        peak_mib=None if peak is None else peak / MIB,
        gradients_mib=case.gradient_bytes / MIB,
        logits_mib=case.input_bytes / MIB,
        grad_max_ulp=verdict.grad_max_ulp,
        loss_rel_err=verdict.loss_rel_err,
    )

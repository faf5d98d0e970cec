"""One run: verifies, times and weighs every provider on every case."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fused_losses.bench import memory
from fused_losses.bench.accuracy import Judge, Verdict
from fused_losses.bench.cases import Case, Inputs, Pass
from fused_losses.bench.providers import BASELINES, COMPILE, EAGER, PROVIDERS, LossFn
from fused_losses.bench.report import MIB, Row
from fused_losses.bench.timing import (
    POOL,
    Samples,
    batch_size,
    copy_contender,
    interleave,
    loss_contender,
)

COPY = "copy"
OK = "ok"

# Called with what is about to happen, before each of `Plan.stages_per_case` stages.
Announce = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """What a run does with every case."""

    providers: Sequence[str]
    pass_: Pass
    rounds: int
    threads: int
    memory: bool

    @property
    def stages_per_case(self) -> int:
        """Stages that `measure` announces: verify, time and, if asked for, weigh."""
        return 3 if self.memory else 2


def measure(case: Case, plan: Plan, announce: Announce) -> list[Row]:
    """A row per provider."""
    pool = [case.inputs(seed) for seed in range(POOL)]
    functions = {name: PROVIDERS[name](case.loss) for name in plan.providers}

    announce(f"verify {case}")
    judge = Judge(case, plan.pass_, pool)
    verdicts = {name: judge.verdict(function) for name, function in functions.items()}
    # 64-bit copies of the inputs, which the timing does not need.
    del judge
    # What torch gets wrong by the rule (compiled sums, by some ulp) is reported, but still what users have.
    timed = {
        name: function
        for name, function in functions.items()
        if name in BASELINES or not verdicts[name].problem
    }

    announce(f"time {case}")
    bytes_moved = case.bytes_moved(plan.pass_, pool[0])
    samples = _time(case, plan, timed, bytes_moved, pool)

    peaks: dict[str, int | None] = {}
    if plan.memory:
        announce(f"weigh {case}")
        peaks = {name: memory.peak_bytes(case, name, plan.threads) for name in timed}
    return [
        _row(case, plan, name, verdicts[name], samples, bytes_moved, peaks.get(name))
        for name in plan.providers
    ]


def _time(
    case: Case,
    plan: Plan,
    functions: dict[str, LossFn],
    bytes_moved: int | None,
    pool: Sequence[Inputs],
) -> dict[str, Samples]:
    """Samples per provider, and of the copy where the bytes that must move are known."""
    contenders = {name: loss_contender(plan.pass_, function, pool) for name, function in functions.items()}
    if bytes_moved is not None:
        contenders[COPY] = copy_contender(bytes_moved, case.numel)
    return interleave(contenders, plan.rounds, batch_size(case.numel))


def _row(
    case: Case,
    plan: Plan,
    provider: str,
    verdict: Verdict,
    samples: dict[str, Samples],
    bytes_moved: int | None,
    peak: int | None,
) -> Row:
    mine, copy = samples.get(provider), samples.get(COPY)
    seconds = (None, None, None) if mine is None else (mine.median, *mine.p10_p90)
    median_ms, p10_ms, p90_ms = (None if value is None else value * 1e3 for value in seconds)

    def speedup(other: str) -> float | None:
        theirs = samples.get(other)
        return None if mine is None or theirs is None else mine.speedup_over(theirs)

    def gbps(timed: Samples | None) -> float | None:
        if timed is None or bytes_moved is None:
            return None
        return bytes_moved / timed.median * 1e-9

    return Row(
        loss=case.loss,
        shape=case.shape_text,
        dtype=case.dtype,
        provider=provider,
        pass_=plan.pass_,
        rounds=plan.rounds,
        status=verdict.problem or OK,
        median_ms=median_ms,
        p10_ms=p10_ms,
        p90_ms=p90_ms,
        vs_eager=speedup(EAGER),
        vs_compile=speedup(COMPILE),
        gbps=gbps(mine),
        copy_gbps=gbps(copy),
        peak_mib=None if peak is None else peak / MIB,
        logits_mib=case.input_bytes / MIB,
        grad_max_ulp=verdict.grad_max_ulp,
        loss_rel_err=verdict.loss_rel_err,
    )

"""From what was found of a provider on a case to the row of the CSV file."""

from __future__ import annotations

from fused_losses.bench.accuracy import Verdict
from fused_losses.bench.cases import Case, Pass
from fused_losses.bench.rows import MIB, OK, Row
from fused_losses.bench.summary import Ratios
from fused_losses.bench.timing import Samples

NO_RATIOS = Ratios(None, None, None)


def row_of(
    case: Case,
    provider: str,
    pass_: Pass,
    verdict: Verdict,
    samples: Samples | None = None,
    *,
    ratios: Ratios = NO_RATIOS,
    bytes_moved: int | None = None,
    copy: Samples | None = None,
    floor: Samples | None = None,
    peak: int | None = None,
) -> Row:
    """The row of one pass; without samples, that of a provider that was not timed, and why.

    Args:
        case: what was measured.
        provider: who.
        pass_: of which pass.
        verdict: what its results are worth.
        samples: its times.
        ratios: its speed beside others'.
        bytes_moved: the least that the pass must move.
        copy: the times of a copy of as many bytes.
        floor: what no one can be faster than; the copy, or the matrix products.
        peak: bytes beyond the inputs.
    """
    seconds = (None, None, None) if samples is None else (samples.median, *samples.p10_p90)
    median_ms, p10_ms, p90_ms = (None if value is None else value * 1e3 for value in seconds)

    def gbps(timed: Samples | None) -> float | None:
        return None if timed is None or bytes_moved is None else bytes_moved / timed.median * 1e-9

    mine, copys = gbps(samples), gbps(copy)
    return Row(
        loss=case.loss,
        size=case.size,
        shape=case.shape_text,
        dtype=case.dtype,
        provider=provider,
        pass_=pass_,
        rounds=0 if samples is None else len(samples.seconds),
        status=verdict.problem or OK,
        median_ms=median_ms,
        p10_ms=p10_ms,
        p90_ms=p90_ms,
        vs_eager=ratios.vs_eager,
        vs_compile=ratios.vs_compile,
        gbps=mine,
        copy_gbps=copys,
        floor_ms=None if floor is None else floor.median * 1e3,
        vs_floor=ratios.vs_floor,
        peak_mib=None if peak is None else peak / MIB,
        gradients_mib=case.gradient_bytes / MIB,
        logits_mib=case.input_bytes / MIB,
        grad_max_ulp=verdict.grad_max_ulp,
        loss_rel_err=verdict.loss_rel_err,
        variant=case.variant,
        percent_of_copy=None if mine is None or copys is None else 100 * mine / copys,
    )

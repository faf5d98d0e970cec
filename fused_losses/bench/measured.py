"""Makes a row of the CSV file from what was found about a provider on a case."""

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
        case: the case that was measured.
        provider: the provider's name.
        pass_: the pass.
        verdict: what verification found about the provider's results.
        samples: the provider's times.
        ratios: its speed relative to eager and compiled torch, and to the floor.
        bytes_moved: the fewest bytes that the pass must move.
        copy: the times of a copy of as many bytes.
        floor: the times of the copy, or for a loss behind a linear layer, of the layer's matrix products.
        peak: the peak of a step beyond its inputs, in bytes.
    """
    seconds = (None, None, None) if samples is None else (samples.median, *samples.p10_p90)
    median_ms, p10_ms, p90_ms = (None if value is None else value * 1e3 for value in seconds)

    def gbps(timed: Samples | None) -> float | None:
        return None if timed is None or bytes_moved is None else bytes_moved / timed.median * 1e-9

    provider_gbps, copy_gbps = gbps(samples), gbps(copy)
    percent = None if provider_gbps is None or copy_gbps is None else 100 * provider_gbps / copy_gbps
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
        gbps=provider_gbps,
        copy_gbps=copy_gbps,
        floor_ms=None if floor is None else floor.median * 1e3,
        vs_floor=ratios.vs_floor,
        peak_mib=None if peak is None else peak / MIB,
        gradients_mib=case.gradient_bytes / MIB,
        logits_mib=case.input_bytes / MIB,
        grad_max_ulp=verdict.grad_max_ulp,
        loss_rel_err=verdict.loss_rel_err,
        variant=case.variant,
        percent_of_copy=percent,
    )

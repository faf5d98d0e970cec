"""Markdown tables of the benchmark's runs on GPUs: for each, an overview and all results."""

from __future__ import annotations

from collections.abc import Sequence

from fused_losses.bench.heads import HEADS
from fused_losses.bench.providers import COMPILE, EAGER, PRODUCTS, UNAVAILABLE
from fused_losses.bench.rows import OK, Machine, Row
from fused_losses.bench.variants import USUAL

NOT_YET = "GPU: not yet timed."

# Providers of the overview, and their names in tables.
PROVIDERS = {
    EAGER: "eager",
    COMPILE: f"`torch.{COMPILE}`",
    "cuda fused": "CUDA",
    "triton fused": "Triton",
    "liger": "Liger-Kernel",
}

# How many cases the overview has: the first ones, since a run begins with those that matter most.
OVERVIEW = 8

NOTHING = "-"

Run = tuple[Machine, list[Row]]
Cases = dict[str, dict[str, Row]]
"""Steps by case, then by provider."""


def overview(runs: Sequence[Run]) -> str:
    """A table for each GPU, or a sentence that no GPU has been timed."""
    return "\n\n".join(_overview(*run) for run in runs) or NOT_YET


def _overview(machine: Machine, measured: Sequence[Row]) -> str:
    large = [row for row in measured if row.size == "large" and row.variant == USUAL]
    cases = list(_cases(large).items())[:OVERVIEW]
    return f"{_preface(machine)}\n\n{_table(cases, PROVIDERS)}"


def everything(machine: Machine, measured: Sequence[Row]) -> str:
    """Steps of all providers, then single passes of this package, then what was not timed."""
    names = {row.provider: PROVIDERS.get(row.provider, row.provider) for row in measured}
    names.pop(PRODUCTS, None)
    apart = [
        f"| {row.case} | {row.provider} | {row.pass_} | {row.median_ms:.3g} | {_percent(row)} |"
        for row in measured
        if row.pass_ != "step" and row.median_ms is not None
    ]
    refused = [
        f"- {row.case}, {row.provider}: {row.status}"
        for row in measured
        if row.status != OK and not row.status.startswith(UNAVAILABLE)
    ]
    # Losses behind a linear layer have other providers: one table of both would be too wide for a page.
    heads = [row for row in measured if row.loss in HEADS]
    others = [row for row in measured if row.loss not in HEADS]
    tables = [_table(list(_cases(rows).items()), names) for rows in (others, heads) if rows]
    return "\n\n".join(
        [
            f"## {machine.machine}",
            _preface(machine),
            *tables,
            "The forward that writes the gradient, and the backward that computes it from the inputs:",
            "\n".join(["| case | provider | pass | ms | of a copy |", f"|{' --- |' * 5}", *apart]),
            "Not timed, or beyond the tolerance:",
            "\n".join(refused) or "None.",
        ]
    )


def _preface(machine: Machine) -> str:
    versions = f"torch {machine.torch}, Triton {machine.triton}, driver {machine.driver}"
    return (
        f"Forward and backward on {machine.place}, {versions}, {machine.date[:10]}:\nmilliseconds of the "
        "kernels, and in brackets the speed at which the least bytes that must move do, in per cent of a\n"
        "copy's (losses behind a linear layer: the peak in MiB)."
    )


def _cases(measured: Sequence[Row]) -> Cases:
    cases: Cases = {}
    for row in measured:
        if row.pass_ == "step":
            cases.setdefault(row.case, {})[row.provider] = row
    return cases


def _table(cases: Sequence[tuple[str, dict[str, Row]]], names: dict[str, str]) -> str:
    timed = {name for _, found in cases for name, row in found.items() if row.median_ms is not None}
    shown = {name: title for name, title in names.items() if name in timed}
    lines = [["", "floor", *shown.values()], ["---"] * (len(shown) + 2)]
    for case, found in cases:
        floors = [row.floor_ms for row in found.values() if row.floor_ms is not None]
        floor = f"{floors[0]:.3g}" if floors else NOTHING
        lines.append([case, floor, *(_cell(found.get(name)) for name in shown)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(row: Row | None) -> str:
    if row is None or row.median_ms is None:
        return NOTHING
    beside = _percent(row)
    if beside == NOTHING and row.peak_mib is not None:
        beside = f"{row.peak_mib:.0f} MiB"
    return f"{row.median_ms:.3g} ({beside})" if beside != NOTHING else f"{row.median_ms:.3g}"


def _percent(row: Row) -> str:
    return NOTHING if row.percent_of_copy is None else f"{row.percent_of_copy:.0f} %"

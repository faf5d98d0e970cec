"""Markdown tables of a run of the benchmark on a CPU: an overview, and all results."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fused_losses.bench.providers import COMPILE, EAGER, PRODUCTS
from fused_losses.bench.rows import OK, Machine, Row
from fused_losses.bench.summary import HOW, Ratios, means

STRATEGIES = {"fused": "fused", "inplace": "in place"}
"""Providers of this package that the tables have, and their names there."""

Cases = dict[tuple[str, str], dict[str, Row]]
"""Rows by loss and shape, then by provider."""

NOTHING = "-"


def overview(machine: Machine, measured: Sequence[Row]) -> str:
    """The means over large inputs, with a line for each dtype and strategy."""
    titles = [
        "large inputs",
        f"times faster than {EAGER} torch",
        f"than `torch.{COMPILE}`",
        "time over the floor's",
        "losses",
    ]
    lines = [titles, ["---"] * len(titles)]
    for mean in means(measured):
        if mean.provider in STRATEGIES:
            ratios = mean.ratios
            name = f'{mean.dtype}, `backward="{mean.provider}"`'
            shown = map(_times, (ratios.vs_eager, ratios.vs_compile, ratios.vs_floor))
            lines.append([name, *shown, str(mean.losses)])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return (
        f"Forward and backward on {machine.place}, "
        f"torch {machine.torch}, {machine.date[:10]}.\n{HOW}\n\n{table}"
    )


def everything(machine: Machine, measured: Sequence[Row]) -> str:
    """A table of all cases for each size and dtype, then what was not timed."""
    parts = ["# Results", "`make docs` writes this file from `cpu.csv`.", _preface(machine)]
    for size in dict.fromkeys(row.size for row in measured):
        parts.append(f"## {size.capitalize()}")
        for dtype in _dtypes(measured):
            cases = _cases(row for row in measured if (row.size, row.dtype) == (size, dtype))
            if not cases:
                continue
            lines = [_line(case, by_provider) for case, by_provider in cases.items()]
            if size == "large":
                lines.append(_mean_line(measured, dtype))
            parts.append(_table(dtype, lines))
    parts.append("## Not timed, or beyond the tolerance")
    refused = [
        f"- `{row.loss}` {row.shape} {row.dtype}, {row.provider}: {row.status}"
        for row in measured
        if row.status != OK
    ]
    parts.append("\n".join(refused) or "None.")
    return "\n\n".join(parts) + "\n"


def heads(machine: Machine, measured: Sequence[Row]) -> str:
    """Losses behind a linear layer: seconds of a step, and its memory beyond inputs and gradients.

    If a provider has run twice, the table has the later run.
    """
    names = [
        name
        for name in (EAGER, COMPILE, "torch chunked", "linear")
        if any(row.provider == name for row in measured)
    ]
    titles = {"linear": "ours"}
    cells = ["", "N x D x V", "dtype", PRODUCTS, *(titles.get(name, name) for name in names)]
    lines = [cells, ["---"] * len(cells)]
    cases: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in measured:
        cases.setdefault((row.loss, row.shape, row.dtype), {})[row.provider] = row
    for (loss, shape, dtype), by_provider in cases.items():
        known = [by_provider.get(name) for name in (PRODUCTS, *names)]
        lines.append([f"`{loss}`", shape, dtype, *map(_seconds_and_memory, known)])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return (
        "A step in seconds, and the MiB that it takes beyond inputs and gradients, on "
        f"{machine.place},\ntorch {machine.torch}, "
        f"{machine.date[:10]}. `linear_loss` is that of `binary_cross_entropy_with_logits`.\n\n{table}"
    )


def _seconds_and_memory(row: Row | None) -> str:
    if row is None or row.median_ms is None:
        return NOTHING
    seconds = f"{row.median_ms / 1e3:.3g} s"
    if row.peak_mib is None or row.gradients_mib is None:
        return seconds
    return f"{seconds}, {row.peak_mib - row.gradients_mib:.0f} MiB"


def _preface(machine: Machine) -> str:
    return (
        f"Forward and backward, in milliseconds, on {machine.place}, "
        f"torch {machine.torch}, {machine.date[:10]}.\n"
        "In brackets: times faster than eager torch and than `torch.compile`, medians of paired ratios.\n"
        "A dash: not timed, as torch has no such kernel or the benchmark's limit of memory was exceeded.\n"
        f"{HOW}"
    )


def _dtypes(measured: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(row.dtype for row in measured))


def _cases(measured: Iterable[Row]) -> Cases:
    cases: Cases = {}
    for row in measured:
        cases.setdefault((row.loss, row.shape), {})[row.provider] = row
    return cases


def _table(dtype: str, lines: Iterable[list[str]]) -> str:
    headings = [dtype, "shape", "floor", EAGER, COMPILE, *STRATEGIES.values()]
    cells = [headings, ["---"] * len(headings), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def _line(case: tuple[str, str], by_provider: dict[str, Row]) -> list[str]:
    loss, shape = case
    floor = next(iter(by_provider.values())).floor_ms
    cells = [f"`{loss}`", shape, _ms(floor)]
    for name in (EAGER, COMPILE):
        cells.append(_ms(by_provider[name].median_ms) if name in by_provider else NOTHING)
    for name in STRATEGIES:
        row = by_provider.get(name)
        if row is None or row.median_ms is None:
            cells.append(NOTHING)
        else:
            cells.append(f"{_ms(row.median_ms)} ({_times(row.vs_eager)}, {_times(row.vs_compile)})")
    return cells


def _mean_line(measured: Sequence[Row], dtype: str) -> list[str]:
    """The means of large inputs, in the columns of `_line`."""
    ratios = {mean.provider: mean.ratios for mean in means(measured) if mean.dtype == dtype}
    cells = ["geometric mean", "", "", "", ""]
    return cells + [_mean(ratios[name]) if name in ratios else NOTHING for name in STRATEGIES]


def _mean(ratios: Ratios) -> str:
    floor = _times(ratios.vs_floor)
    return f"{_times(ratios.vs_eager)}, {_times(ratios.vs_compile)}; {floor} the floor"


def _ms(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3g}"


def _times(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2g}x" if value < 1 else f"{value:.1f}x"

"""What a run prints: a table of its rows, and the summary."""

import sys
from collections.abc import Callable, Sequence
from itertools import groupby

from rich import box
from rich.console import Console
from rich.table import Table

from fused_losses.bench.heads import HEADS
from fused_losses.bench.providers import EAGER, OWN, PRODUCTS, PROVIDERS, UNAVAILABLE
from fused_losses.bench.rows import OK, Machine, Row
from fused_losses.bench.summary import (
    HOW,
    NOISE,
    TARGETS,
    Mean,
    means,
    slower_than_compile,
    slower_than_eager,
)

# Characters in a line of what is not written to a terminal: as many as a terminal has at the least.
FILE_WIDTH = 80
console = Console(width=None if sys.stdout.isatty() else FILE_WIDTH)

# Characters of a provider's name, and of the reason why one was not timed in a line that has others, too.
_NAME_WIDTH, REASON_WIDTH = 17, 60

# What a line has of a row, and in how many characters.
_HEADINGS = {
    "ms": 9,
    "+-": 6,
    "eager": 7,
    "compile": 8,
    "GB/s": 7,
    "floor": 7,
    "peak": 9,
    "ulp": 7,
}
_CAPTION = (
    "+-: half the distance of the deciles. eager, compile: how many times faster, the median of the ratios "
    "of the rounds. floor: how many times as long as a copy of the bytes that must move, in the same run "
    "(behind a linear layer: as its three matrix products). peak: MiB beyond the inputs (behind a linear "
    "layer: and the gradients). ulp: the largest error of a gradient."
)


def _short(value: float | None, unit: str = "") -> str:
    """Three digits, or a whole number: more would not be the same in the next run."""
    return "" if value is None else f"{value:.0f}{unit}" if value >= 100 else f"{value:.3g}{unit}"


def _number(value: float | None, digits: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{digits}}{unit}"


def print_results(rows: Sequence[Row], machine: Machine, console: Console) -> None:
    """A heading for each case, and a line for each of its rows."""
    console.print(f"{rows[0].pass_}, {machine.place}", style="bold", markup=False)
    console.print(_CAPTION, markup=False, highlight=False)
    console.print(" " * _NAME_WIDTH + _aligned([*_HEADINGS]), highlight=False)
    for case, case_rows in groupby(rows, key=lambda row: row.case):
        found = list(case_rows)
        heading = f"{case}, {found[0].logits_mib:.3g} MiB"
        console.print(heading, style="cyan", markup=False, highlight=False, soft_wrap=True)
        for row in found:
            if row.median_ms is None:
                text = f"{row.provider:{_NAME_WIDTH}} {row.status}"
                style = None if row.status.startswith(UNAVAILABLE) else "bold red"
                console.print(text, style=style, markup=False, highlight=False)
            else:
                text = f"{row.provider:{_NAME_WIDTH}}{_aligned(_cells(row))}"
                console.print(text, style=None if row.status == OK else "red", markup=False, highlight=False)


def _aligned(cells: Sequence[str]) -> str:
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, _HEADINGS.values(), strict=True))


def _cells(row: Row) -> list[str]:
    """The numbers of a row that was timed, as in `_HEADINGS`."""
    spread = ""
    if row.median_ms and row.p10_ms is not None and row.p90_ms is not None:
        spread = f"{50 * (row.p90_ms - row.p10_ms) / row.median_ms:.0f}%"
    peak = row.peak_mib
    if peak is not None and row.loss in HEADS:
        peak -= row.gradients_mib or 0
    return [
        _short(row.median_ms),
        spread,
        _short(row.vs_eager, "x"),
        _short(row.vs_compile, "x"),
        _short(row.gbps),
        _short(row.vs_floor),
        _short(peak),
        _short(row.grad_max_ulp),
    ]


def line(rows: Sequence[Row]) -> str:
    """A case in one line: each provider's milliseconds, and in brackets its speed in per cent of a copy's."""
    floor = next((row.floor_ms for row in rows if row.floor_ms is not None), None)
    parts = [] if floor is None else [f"floor {floor:.3g}"]
    for row in rows:
        if row.status.startswith(UNAVAILABLE):
            continue
        name = row.provider if row.pass_ == "step" else f"its {row.pass_}"
        if row.median_ms is None:
            parts.append(f"{name}: {row.status[:REASON_WIDTH]}")
            continue
        share = "" if row.percent_of_copy is None else f" ({row.percent_of_copy:.0f} %)"
        host = "" if row.host_ms is None or row.size != "small" else f", host {row.host_ms:.3g}"
        mark = "" if row.status == OK else " WRONG"
        parts.append(f"{name} {row.median_ms:.3g}{share}{host}{mark}")
    return f"{rows[0].case}, ms: {'; '.join(parts) or 'no provider can run here'}"


def print_summary(rows: Sequence[Row], console: Console) -> None:
    """Means and targets of large inputs, then what is slower than a baseline, then what was not timed."""
    reached = means(rows)
    if reached:
        console.print(_means_table(reached))
    own = [row for row in rows if row.provider in OWN]
    _print_rows(
        f"Slower than eager (medium and small: by more than {NOISE:.0%})",
        slower_than_eager(own),
        lambda row: f"{row.size}, {row.vs_eager:.2f}x",
        console,
    )
    _print_rows(
        "Slower than compile (large)",
        slower_than_compile(own),
        lambda row: f"{row.vs_compile:.2f}x",
        console,
    )
    refused = [row for row in rows if row.status != OK]
    _print_rows("Not timed, or beyond the tolerance", refused, lambda row: row.status, console)


def _means_table(reached: Sequence[Mean]) -> Table:
    table = Table(title="Large inputs", caption=HOW, box=box.SIMPLE, collapse_padding=True, pad_edge=False)
    for heading in ("dtype", "provider"):
        table.add_column(heading, no_wrap=True)
    for heading in ("n", "vs eager", "vs compile", "floor"):
        table.add_column(heading, justify="right", no_wrap=True)
    for is_behind_layer, group in groupby(reached, key=lambda mean: mean.is_behind_layer):
        table.add_section()
        if is_behind_layer:
            table.add_row("linear layer and loss")
        for mean in group:
            if mean.provider not in (EAGER, PRODUCTS):
                table.add_row(*_cells_of_mean(mean))
    return table


def _cells_of_mean(mean: Mean) -> list[str]:
    # There are targets for CPUs alone.
    has_targets = not mean.is_behind_layer and mean.provider in OWN and not PROVIDERS[mean.provider].backend
    target = TARGETS.get(mean.dtype) if has_targets else None
    cells = [mean.dtype, mean.provider, str(mean.losses)]
    for name, sign in (("vs_eager", 1), ("vs_compile", 1), ("vs_floor", -1)):
        wanted = None if target is None else getattr(target, name)
        cells.append(_verdict(getattr(mean.ratios, name), wanted, sign))
    return cells


def _verdict(reached: float | None, wanted: float | None, sign: int) -> str:
    """A ratio, and whether it meets its target, which it should be at least (sign 1) or at most (-1)."""
    text = _number(reached, ".2f", "x")
    if reached is None or wanted is None:
        return text
    met = sign * reached >= sign * wanted
    bound = f"{'>=' if sign > 0 else '<='} {wanted:g}"
    return f"{text} [green]{bound}[/]" if met else f"{text} [bold red]not {bound}[/]"


def _print_rows(title: str, rows: Sequence[Row], text: Callable[[Row], str], console: Console) -> None:
    console.print(f"{title}: {len(rows) or 'none'}")
    for row in rows:
        console.print(f"  {row.case} {row.provider}: {text(row)}", markup=False, highlight=False)

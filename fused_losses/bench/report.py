"""What a run prints: a table of its rows, and the summary."""

import sys
from collections.abc import Callable, Sequence

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

# Characters in a line of a table that is not written to a terminal: enough that nothing is folded.
FILE_WIDTH = 160
console = Console(width=None if sys.stdout.isatty() else FILE_WIDTH)


def _number(value: float | None, digits: str, unit: str = "") -> str:
    return "" if value is None else f"{value:{digits}}{unit}"


def results_table(rows: Sequence[Row], machine: Machine) -> Table:
    """A line per row, a section per case."""
    table = Table(
        title=f"{rows[0].pass_}, {machine.threads} threads, {machine.isa}, {machine.machine}",
        caption="vs: times faster, median of the ratios of the rounds. "
        "floor: times as long as a copy of the bytes that must move, in the same run (behind a linear layer: "
        "as its three matrix products). peak: beyond the inputs (behind a linear layer: and the gradients), "
        "of the logits' size.",
        box=box.SIMPLE,
        collapse_padding=True,
    )
    table.add_column("case", overflow="fold")
    table.add_column("provider")
    headings = ("ms", "p10-p90", "vs eager", "vs compile", "GB/s", "floor", "peak MiB")
    for heading in (*headings, "grad ulp", "loss error"):
        table.add_column(heading, justify="right", no_wrap=True)
    previous = ""
    for row in rows:
        if row.case != previous:
            table.add_section()
        table.add_row("" if row.case == previous else row.case, row.provider, *_cells(row))
        previous = row.case
    return table


def _cells(row: Row) -> list[str]:
    """The row's numbers, or why there are none, for the columns after the provider's."""
    accuracy = [_number(row.grad_max_ulp, ".1f"), _number(row.loss_rel_err, ".0e")]
    if row.median_ms is None:
        if row.status.startswith(UNAVAILABLE):
            return ["-"] * 9
        # Only the first words: a narrow column would cut the others.
        return [f"[bold red]{row.status.partition(':')[0]}[/]", *[""] * 6, *accuracy]
    peak = "" if row.peak_mib is None else f"{row.peak_mib:.1f} of {row.logits_mib:.1f}"
    if row.peak_mib is not None and row.loss in HEADS:
        peak = f"{row.peak_mib - (row.gradients_mib or 0):.1f} of {row.logits_mib:.1f}"
    return [
        _number(row.median_ms, ".3g"),
        f"{row.p10_ms:.3g}-{row.p90_ms:.3g}",
        _number(row.vs_eager, ".2f", "x"),
        _number(row.vs_compile, ".2f", "x"),
        _number(row.gbps, ".1f"),
        _number(row.vs_floor, ".2f", "x"),
        peak,
        *accuracy,
    ]


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
    table = Table(title="Large inputs", caption=HOW, box=box.SIMPLE, collapse_padding=True)
    for heading in ("of", "dtype", "provider"):
        table.add_column(heading)
    for heading in ("losses", "vs eager", "target", "vs compile", "target", "floor", "target"):
        table.add_column(heading, justify="right", no_wrap=True)
    for mean in reached:
        if mean.provider in (EAGER, PRODUCTS):
            continue
        # There are targets for CPUs alone.
        has_targets = (
            not mean.is_behind_layer and mean.provider in OWN and not PROVIDERS[mean.provider].backend
        )
        target = TARGETS.get(mean.dtype) if has_targets else None
        what = "linear and loss" if mean.is_behind_layer else "losses"
        cells = [what, mean.dtype, mean.provider, str(mean.losses)]
        for name, sign in (("vs_eager", 1), ("vs_compile", 1), ("vs_floor", -1)):
            ratio = getattr(mean.ratios, name)
            wanted = None if target is None else getattr(target, name)
            cells.append(_number(ratio, ".2f", "x"))
            cells.append(_verdict(ratio, wanted, sign))
        table.add_row(*cells)
    return table


def _verdict(reached: float | None, wanted: float | None, sign: int) -> str:
    """Whether a ratio meets its target, which it should be at least (sign 1) or at most (-1)."""
    if reached is None or wanted is None:
        return ""
    met = sign * reached >= sign * wanted
    bound = f"{'at least' if sign > 0 else 'at most'} {wanted:g}"
    return f"[green]{bound}: met[/]" if met else f"[bold red]{bound}: missed[/]"


def _print_rows(title: str, rows: Sequence[Row], text: Callable[[Row], str], console: Console) -> None:
    console.print(f"{title}: {len(rows) or 'none'}")
    for row in rows:
        console.print(f"  {row.case} {row.provider}: {text(row)}", markup=False, highlight=False)

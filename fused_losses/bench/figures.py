"""Pictures of a run: times faster than torch, bandwidth against a copy's, peak memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from fused_losses.bench.heads import HEADS
from fused_losses.bench.providers import COMPILE, EAGER, PRODUCTS
from fused_losses.bench.rows import Machine, Row

# Colours of Okabe and Ito's palette, which people with the common kinds of colour blindness can tell apart,
# and a marker for each provider.
STYLES = {
    EAGER: ("#000000", "s"),
    COMPILE: ("#E69F00", "D"),
    "fused": ("#0072B2", "o"),
    "inplace": ("#009E73", "^"),
    "recompute": ("#CC79A7", "v"),
    "linear": ("#0072B2", "o"),
    "torch reference": ("#56B4E9", "P"),
    "torch chunked": ("#D55E00", "X"),
    "liger": ("#CC79A7", "v"),
    "cut-cross-entropy": ("#F0E442", "h"),
    # On a GPU, CUDA C++ is blue and Triton red.
    "cuda fused": ("#0072B2", "o"),
    "cuda recompute": ("#0072B2", "<"),
    "cuda inplace": ("#0072B2", "^"),
    "cuda linear": ("#0072B2", "p"),
    "triton fused": ("#D55E00", "o"),
    "triton recompute": ("#D55E00", "<"),
    "triton inplace": ("#D55E00", "^"),
    "triton linear": ("#D55E00", "p"),
}

# In inches: the width of a page of text, the height of a line in small print, and that of title and legend.
WIDTH, LINE, MARGIN = 8.0, 0.2, 1.6

# Dots per inch: a picture is 720 pixels wide.
DPI = 90

# Distance between the points of two providers on a case's line, as a part of its height: ten providers fit.
DODGE = 0.1

Value = Callable[[Row], float | None]


def speed(machine: Machine, rows: Sequence[Row], dtype: str) -> Figure | None:
    """Times faster than eager torch and than torch.compile, medians of paired ratios; None without any."""
    chosen = [row for row in rows if row.dtype == dtype and row.median_ms is not None]
    providers = [name for name in _providers(chosen) if name not in (EAGER, COMPILE, PRODUCTS)]
    comparisons: list[tuple[str, Value]] = [
        (f"times faster than {EAGER}", lambda row: row.vs_eager),
        (f"times faster than torch.{COMPILE}", lambda row: row.vs_compile),
    ]
    return _figure(machine, chosen, f"Speed, {dtype}", comparisons, providers, is_log=True)


def bandwidth(machine: Machine, rows: Sequence[Row], dtype: str) -> Figure | None:
    """Bytes that must move per second, beside what a copy reaches, and times the floor; None without any."""
    chosen = [row for row in rows if row.dtype == dtype and row.median_ms is not None]
    comparisons: list[tuple[str, Value]] = [
        ("GB/s; bar: a copy", lambda row: row.gbps),
        ("times the floor", lambda row: row.vs_floor),
    ]
    providers = [name for name in _providers(chosen) if name != PRODUCTS]
    return _figure(machine, chosen, f"Bandwidth, {dtype}", comparisons, providers, is_log=True)


def peak_memory(machine: Machine, rows: Sequence[Row], dtype: str) -> Figure | None:
    """Peak of a step beyond its inputs, over the size of the logits; None without any."""
    chosen = [row for row in rows if row.dtype == dtype and row.peak_mib is not None]
    comparisons: list[tuple[str, Value]] = [
        ("peak beyond inputs and gradients / size of the logits", _extra)
        if any(row.loss in HEADS for row in chosen)
        else ("peak beyond the inputs / size of the logits", lambda row: (row.peak_mib or 0) / row.logits_mib)
    ]
    return _figure(machine, chosen, f"Peak memory, {dtype}", comparisons, _providers(chosen), is_log=False)


def _extra(row: Row) -> float | None:
    """Peak beyond inputs and gradients, over the size of the logits."""
    return ((row.peak_mib or 0) - (row.gradients_mib or 0)) / row.logits_mib


def _providers(rows: Iterable[Row]) -> list[str]:
    present = {row.provider for row in rows}
    return [name for name in STYLES if name in present]


def _figure(
    machine: Machine,
    rows: Sequence[Row],
    what: str,
    comparisons: Sequence[tuple[str, Value]],
    providers: Sequence[str],
    is_log: bool,
) -> Figure | None:
    """A panel for each comparison, with a line for each case and a point on it for each provider."""
    shown = [(label, value) for label, value in comparisons if any(value(r) for r in rows)]
    cases = list(dict.fromkeys(row.name for row in rows))
    if not shown or not providers:
        return None
    figure = Figure(figsize=(WIDTH, MARGIN + LINE * len(cases)), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, (label, value) in zip(panels, shown, strict=True):
        _draw(axes, rows, cases, value, providers)
        if is_log:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        if label.startswith("GB/s"):
            _draw_copies(axes, rows, cases)
        elif is_log:
            axes.axvline(1, color="0.5", linewidth=0.8)
        axes.set_xlabel(label, fontsize=8)
    panels[0].set_yticks(range(len(cases)), cases)
    panels[0].invert_yaxis()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8, frameon=False)
    figure.suptitle(_title(machine, rows, what), fontsize=9)
    return figure


def _draw(
    axes: Axes, rows: Sequence[Row], cases: Sequence[str], value: Value, providers: Sequence[str]
) -> None:
    lines = {case: line for line, case in enumerate(cases)}
    for index, name in enumerate(providers):
        # Providers are drawn one below the other, so that equal numbers do not hide each other.
        shift = DODGE * (index - (len(providers) - 1) / 2)
        found = {
            lines[row.name] + shift: number
            for row in rows
            if row.provider == name and (number := value(row)) is not None
        }
        color, marker = STYLES[name]
        # A white edge separates points that overlap nevertheless.
        axes.scatter(
            list(found.values()),
            list(found),
            s=22,
            c=color,
            marker=marker,
            edgecolors="white",
            linewidths=0.4,
            label=name,
            zorder=3,
        )
    axes.grid(axis="both", color="0.9", linewidth=0.5)
    axes.tick_params(labelsize=7, length=2)
    axes.set_axisbelow(True)


def _draw_copies(axes: Axes, rows: Sequence[Row], cases: Sequence[str]) -> None:
    """Draws what a copy reached in the same run: a bar across each case's line."""
    for line, case in enumerate(cases):
        copies = {row.copy_gbps for row in rows if row.name == case and row.copy_gbps}
        axes.vlines(sorted(copies), line - 0.4, line + 0.4, color="0.3", linewidth=1.5)


def _title(machine: Machine, rows: Sequence[Row], what: str) -> str:
    passes = ", ".join(sorted({row.pass_ for row in rows}))
    sizes = ", ".join(dict.fromkeys(row.size or "large" for row in rows))
    return (
        f"{what}: {passes}, {sizes} inputs\n"
        f"{machine.place}; torch {machine.torch}, "
        f"fused_losses {machine.fused_losses}; {machine.date[:10]}"
    )

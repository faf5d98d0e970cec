"""What the two training runs found: a table for the terminal and a picture."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # writes files only, so it also works where there is no display

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from rich.table import Table

COLOURS = ("#8a8f98", "#d9480f")  # grey for the baseline, orange for what is compared with it
MISSING = "-"


@dataclass(frozen=True)
class Result:
    """What one run measured; memory is None on systems that cannot tell."""

    name: str
    losses: Sequence[float]
    loss_layer_ms: float
    step_ms: float
    loss_layer_mib: float | None
    step_mib: float | None

    def measures(self) -> dict[str, float | None]:
        """The measures where less is better, by the names that table and picture show."""
        return {
            "loss layer, ms": self.loss_layer_ms,
            "training step, ms": self.step_ms,
            "loss layer, peak MiB": self.loss_layer_mib,
            "training step, peak MiB": self.step_mib,
        }


def largest_difference(baseline: Result, candidate: Result) -> float:
    """How far apart the two loss curves ever are."""
    return max(abs(a - b) for a, b in zip(baseline.losses, candidate.losses, strict=True))


def _comparison(baseline: float | None, candidate: float | None) -> str:
    """Say how many times less, or more, the candidate needs."""
    if not baseline or not candidate:
        return MISSING
    if candidate <= baseline:
        return f"{baseline / candidate:.2f}x less"
    return f"{candidate / baseline:.2f}x more"


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.1f}"


def table(baseline: Result, candidate: Result, title: str) -> Table:
    """Lay the two results side by side, and compare what they need."""
    result = Table(title=title, title_justify="left", caption_justify="left")
    result.add_column("")
    for name in (baseline.name, candidate.name, ""):
        result.add_column(name, justify="right")
    final = (f"{run.losses[-1]:.6f}" for run in (baseline, candidate))
    result.add_row("final loss", *final, "")
    difference = largest_difference(baseline, candidate)
    result.add_row("largest difference of the losses", "", f"{difference:.1e}", "", end_section=True)
    theirs = candidate.measures()
    for name, value in baseline.measures().items():
        result.add_row(name, _number(value), _number(theirs[name]), _comparison(value, theirs[name]))
    result.caption = "Times: medians over all steps. Loss layer: forward + backward to the logits."
    return result


def _draw_curves(axes: Axes, baseline: Result, candidate: Result) -> None:
    steps = range(1, len(baseline.losses) + 1)
    axes.plot(steps, baseline.losses, color=COLOURS[0], linewidth=2.5, label=baseline.name)
    # Thin and dashed, so that the first curve shows underneath.
    axes.plot(steps, candidate.losses, "--", color=COLOURS[1], linewidth=1, label=candidate.name)
    difference = largest_difference(baseline, candidate)
    axes.set_title(f"Same loss curve: never more than {difference:.1e} apart", loc="left", weight="bold")
    axes.set_xlabel("training step")
    axes.set_ylabel("cross-entropy, nats per token")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def _draw_bars(axes: Axes, title: str, runs: tuple[Result, Result]) -> None:
    values = [run.measures()[title] for run in runs]
    bars = axes.bar([run.name for run in runs], [value or 0.0 for value in values], color=COLOURS)
    axes.bar_label(bars, [_number(value) for value in values], padding=2)
    axes.set_title(f"{title}\n{_comparison(*values)}", loc="left", fontsize="medium", weight="bold")
    axes.margins(y=0.15)  # room for the numbers above the bars
    axes.set_yticks([])
    axes.spines[["left", "top", "right"]].set_visible(False)


def save_picture(baseline: Result, candidate: Result, title: str, path: Path) -> None:
    """Draw both loss curves above one pair of bars for each measure."""
    measures = list(baseline.measures())
    figure = plt.figure(figsize=(11, 7), layout="constrained")
    grid = figure.add_gridspec(2, len(measures), height_ratios=(3, 2))
    figure.suptitle(title, x=0.01, ha="left")
    _draw_curves(figure.add_subplot(grid[0, :]), baseline, candidate)
    for column, measure in enumerate(measures):
        _draw_bars(figure.add_subplot(grid[1, column]), measure, (baseline, candidate))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)

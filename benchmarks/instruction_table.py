"""A Markdown table of benchmarks/results/gpu-report.csv: what losses execute for each element on sm_90."""

from __future__ import annotations

import csv
from pathlib import Path

DTYPE, TARGET = "bfloat16", "sm_90"
DIRECTIONS = ("forward", "backward")
BACKENDS = {"cuda": "CUDA", "triton": "Triton"}

SHOWN = {
    "mse_loss": "8192x1024",
    "binary_cross_entropy_with_logits": "8192x1024",
    "kl_div": "8192x1024",
    "gaussian_nll_loss": "8192x1024",
    "triplet_margin_loss": "4096x128",
}
"""One shape of a few losses; one that the report does not have is left out.

Kernels of softmax are not among them: how often their loops run depends on what is loaded, and a count of
their code says little.
"""


def table(path: Path) -> str:
    """Instructions of a forward with its gradient / of a backward that makes it again, for each backend."""
    with path.open(newline="") as file:
        rows = {
            (row["loss"], row["shape"], row["backend"], row["direction"]): row
            for row in csv.DictReader(file)
            if (row["dtype"], row["target"], row["special"]) == (DTYPE, TARGET, "")
        }
    lines = [
        "| instructions for each element, forward with gradient / backward | "
        + " | ".join(BACKENDS.values())
        + " |",
        "| --- |" + " --- |" * len(BACKENDS),
    ]
    for loss, shape in SHOWN.items():
        cells = [
            " / ".join(_said(rows.get((loss, shape, backend, direction))) for direction in DIRECTIONS)
            for backend in BACKENDS
        ]
        if any(cell != "- / -" for cell in cells):
            lines.append(f"| `{loss}`, {shape} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _said(row: dict[str, str] | None) -> str:
    if row is None:
        return "-"
    return f"{'' if row['is_sure'] == 'True' else '≥ '}{float(row['instructions']):.1f}"

"""Writes the README's results from benchmarks/results/cpu-large.csv, between its two markers.

The CSV is what `python -m fused_losses.bench run --size large --no-memory` wrote on a quiet machine.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "cpu-large.csv"
README = ROOT / "README.md"
BEGIN, END = "<!-- results -->", "<!-- /results -->"


def table() -> str:
    """Milliseconds of a step, and how many times faster than torch ours is."""
    with RESULTS.open() as file:
        rows = list(csv.DictReader(file))
    cases: dict[tuple[str, str, str], dict[str, dict[str, str]]] = defaultdict(dict)
    for row in rows:
        cases[row["loss"], row["shape"], row["dtype"]][row["provider"]] = row
    first = rows[0]
    where = f"{first['threads']} threads of {first['machine']} ({first['isa']}), torch {first['torch']}"
    lines = [
        f"Forward and backward of about 8M elements, in milliseconds; {where}, {first['date'][:10]}.",
        "In brackets: times faster than eager torch and than `torch.compile`, medians of paired ratios.",
        "",
        "| loss | shape | dtype | eager | compile | fused | in place |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for (loss, shape, dtype), by in cases.items():
        cells = [f"{float(by[name]['median_ms']):.3g}" for name in ("eager", "compile")]
        for name in ("fused", "inplace"):
            row = by[name]
            ratios = f"{float(row['vs_eager']):.1f}x, {float(row['vs_compile']):.1f}x"
            cells.append(f"{float(row['median_ms']):.3g} ({ratios})")
        lines.append(f"| `{loss}` | {shape} | {dtype} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    text = README.read_text()
    begin, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    README.write_text(f"{text[:begin]}\n{table()}\n\n{text[end:]}")


if __name__ == "__main__":
    main()

"""Writes what README.md says of losses and results, between its markers, from the code and the CSV.

The table of losses comes from `fused_losses.registry` and the functions' signatures. The results come
from `benchmarks/results/cpu.csv`, which `python -m fused_losses.bench run --all` wrote on a quiet
machine, and go in full to `benchmarks/results/README.md`. Without that file, they stay as they are. Those
of GPUs come from `benchmarks/results/gpu-*.csv`, one for each GPU, of `run --device cuda`; what kernels
execute there, from `benchmarks/results/gpu-report.csv`.
With `--check`, nothing is written: the exit status is 1 if anything would be.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gpu_tables
import instruction_table
import losses_table
import results_tables

from fused_losses.bench import rows

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results" / "cpu.csv"
HEADS = RESULTS.with_name("cpu-linear.csv")
# Facts about machine code, not times, although its name begins as those of results from GPUs.
GPU_REPORT = RESULTS.with_name("gpu-report.csv")
ALL_RESULTS = RESULTS.parent / "README.md"


def between_markers(text: str, name: str, content: str) -> str:
    """The text with the content between `<!-- name -->` and `<!-- /name -->`."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"{README.name} must have {begin} and {end} once each")
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    return f"{head}{begin}\n{content}\n{end}{tail}"


def generated() -> dict[Path, str]:
    """The content of every file that this script writes."""
    gpu_runs = [rows.read(path) for path in sorted(RESULTS.parent.glob("gpu-*.csv")) if path != GPU_REPORT]
    readme = between_markers(README.read_text(), "losses", losses_table.table())
    readme = between_markers(readme, "gpu", gpu_tables.overview(gpu_runs))
    readme = between_markers(readme, "instructions", instruction_table.table(GPU_REPORT))
    if not RESULTS.exists():
        return {README: readme}
    machine, measured = rows.read(RESULTS)
    readme = between_markers(readme, "results", results_tables.overview(machine, measured))
    readme = between_markers(readme, "linear", results_tables.heads(*rows.read(HEADS)))
    results = [results_tables.everything(machine, measured)]
    results += [gpu_tables.everything(*run) + "\n" for run in gpu_runs]
    return {README: readme, ALL_RESULTS: "\n".join(results)}


def main() -> None:
    stale = {
        path: text for path, text in generated().items() if not path.exists() or path.read_text() != text
    }
    names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
    if "--check" in sys.argv[1:]:
        sys.exit(f"not current: {names}; run `make docs`" if stale else 0)
    for path, text in stale.items():
        path.write_text(text)
    print(f"written: {names}" if stale else "all current")


if __name__ == "__main__":
    main()

"""The short table that ends a session, made of the files that it has left."""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from pathlib import Path

WORST = ("passed", "skipped", "not run", "failed", "crashed")
"""Of one test's outcomes, the last counts: a worker that breaks reports the failure, and then its own end."""

MOST = 40  # lines of failures: what a screen holds

LOSS = re.compile(r"\w*(loss|cross_entropy|kl_div)\w*")
"""The name of a loss among a test's parameters."""


def lines(out: Path) -> list[str]:
    return [
        *_of_tests(out / "tests.csv"),
        *_of_kernels(out / "kernels.csv"),
        *_of_benchmark(out / "benchmark.log"),
    ]


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _of_tests(path: Path) -> list[str]:
    worst: dict[tuple[str, str], str] = {}
    messages: dict[tuple[str, str], str] = {}
    for row in _rows(path):
        key, outcome = (row["run"], row["test"]), row["outcome"]
        worst[key] = max(worst.get(key, "passed"), outcome, key=WORST.index)
        # The first says what happened.
        if outcome in ("failed", "crashed"):
            messages.setdefault(key, row["message"])
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for (run, _), outcome in worst.items():
        counts[run][outcome] += 1
    found = [
        f"{run}: {', '.join(f'{each[x]} {x}' for x in WORST if each[x])}" for run, each in counts.items()
    ]
    kinds: defaultdict[str, list[str]] = defaultdict(list)
    for (run, test), message in messages.items():
        function, _, parameters = test.rpartition("/")[2].partition("[")
        loss = LOSS.search(parameters)
        kinds[f"{run}: {function} {loss[0] if loss else ''}"].append(f"[{parameters} {message}")
    found += [f"  {kind}: {len(each)}, such as {each[0]}" for kind, each in list(kinds.items())[:MOST]]
    if len(kinds) > MOST:
        found.append(f"  and {len(kinds) - MOST} more kinds of failures")
    return found


def _of_kernels(path: Path) -> list[str]:
    """A line for each loss."""
    times: dict[str, list[str]] = {}
    for row in _rows(path):
        text = f"{row['backend']} {row['pass']} {row['launches']}x {float(row['microseconds']):.0f} us"
        times.setdefault(f"{row['loss']} {row['shape']}", []).append(text)
    return [f"kernels: {name}: {'; '.join(each)}" for name, each in times.items()]


def _of_benchmark(path: Path) -> list[str]:
    """A line for each case, and what it says at its end, without the details."""
    said = path.read_text().splitlines() if path.exists() else []
    return [f"benchmark: {line}" for line in said if line and not line.startswith(("==", " "))]

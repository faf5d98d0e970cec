"""The benchmark's commands within this process, and rows of results that no one has measured.

Whoever imports this asks for typer and rich first.
"""

from __future__ import annotations

import dataclasses
import re

from typer.testing import CliRunner

from fused_losses.bench import rows as bench_rows
from fused_losses.bench.cli import app


def invoke(*arguments: object, status: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output
    # Boxes of error messages fold their lines.
    return re.sub(r"[\s│]+", " ", result.output)


def machine(**changes):
    here = bench_rows.Machine("a CPU", 2, "2026-01-02T03:04:05+00:00", "2.14", "0.1", "AVX2", 2, 0.1)
    return dataclasses.replace(here, **changes)


def row(loss, median, spread=0.01, provider="fused", **changes):
    """A row whose deciles are a part `spread` below and above the median."""
    fields = dataclasses.fields(bench_rows.Row)
    numbers = {field.name: 1.0 for field in fields if field.default is dataclasses.MISSING}
    texts = {"loss": loss, "size": "large", "shape": "8x8", "dtype": "float32", "provider": provider}
    times = {"median_ms": median, "p10_ms": median * (1 - spread), "p90_ms": median * (1 + spread)}
    return bench_rows.Row(
        **{**numbers, **texts, "pass_": "step", "status": "ok", "rounds": 7, **times, **changes}
    )


def write(path, rows, **changes):
    with bench_rows.writer(path, machine(**changes)) as append:
        append(rows)
    return path

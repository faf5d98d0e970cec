"""benchmarks/gpu_limits.py: what fails a report, and what is accepted as of today."""

import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

pytest.importorskip("triton")
sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import cells
import gpu_limits
from gpu_limits import WITHIN, Limit, failures, renewed

from fused_losses.registry import LOSSES

KEY = ("mse_loss", "bfloat16", "8192x1024", "", "forward")
GOAL = Limit(*KEY, "cuda", 11, "goal")


@dataclass
class Row:
    backend: str
    instructions: float
    problems: str = ""
    is_pointwise: bool = True
    key: gpu_limits.Key = KEY


def test_rows_within_limits_pass():
    assert failures([Row("cuda", 11), Row("triton", 11 * WITHIN)], [GOAL]) == []


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [Row("cuda", 11.1), Row("triton", 12)],
            "cuda mse_loss bfloat16 8192x1024 forward: 11.1 .* at most 11",
        ),
        (
            [Row("cuda", 10), Row("triton", 13.3)],
            "triton .*: 13.3 instructions for each element, at most 13.2",
        ),
        ([Row("cuda", 10), Row("triton", 9)], "cuda .*: 10 instructions for each element, Triton 9"),
        ([Row("cuda", 10, "8 bytes of local memory")], "cuda .*: 8 bytes of local memory"),
    ],
)
def test_what_fails(rows, said):
    (failure,) = failures(rows, [GOAL])
    assert re.match(said, failure)


def test_only_pointwise_losses_of_cuda_compete_with_triton():
    assert failures([Row("cuda", 10, is_pointwise=False), Row("triton", 9, is_pointwise=False)], []) == []


def test_today_may_stay_but_not_become_worse():
    rows = [Row("triton", 100, "8 bytes of local memory", is_pointwise=False)]
    limits = renewed([GOAL], [replace(row, key=("other", *KEY[1:])) for row in rows])
    assert [limit.kind for limit in limits] == ["goal", "today"]
    other = [replace(row, key=("other", *KEY[1:])) for row in rows]
    assert failures(other, limits) == []
    assert failures([replace(other[0], instructions=103)], limits)
    assert failures([replace(other[0], problems="16 bytes of local memory")], limits)


def test_what_is_seen_today_replaces_no_goal_and_no_pointwise_loss():
    assert renewed([GOAL], [Row("cuda", 9, is_pointwise=False), Row("cuda", 1, key=("l1", *KEY[1:]))]) == [
        GOAL
    ]


@pytest.mark.parametrize("rows", [[Row("cuda", 15)], [Row("cuda", 10), Row("triton", 9)]])
def test_a_goal_that_is_missed_may_not_be_missed_by_more(rows):
    limits = renewed([GOAL], rows)
    assert [limit.kind for limit in limits] == ["goal", "missed"]
    assert failures(rows, limits) == []
    assert failures([replace(rows[0], instructions=rows[0].instructions * 1.05), *rows[1:]], limits)


def test_a_table_is_read_as_it_was_written(tmp_path):
    limits = [GOAL, Limit(*KEY, "triton", 12.5, "today", "8 bytes of local memory")]
    gpu_limits.write(limits, tmp_path / "table.csv")
    assert gpu_limits.read(tmp_path / "table.csv") == limits


def test_every_limit_is_of_a_cell_of_the_report():
    keys = {(*cell.key, direction) for cell in cells.CELLS for direction in ("forward", "backward")}
    limits = gpu_limits.read()
    assert {limit.key for limit in limits} <= keys
    assert len({(limit.key, limit.backend, limit.kind) for limit in limits}) == len(limits)
    goals = {limit.key for limit in limits if limit.kind == "goal"}
    assert all(LOSSES[loss].family == "pointwise" for loss, *_ in goals)


def test_cells_have_the_shapes_that_break_kernels():
    shapes = {cell.shape for cell in cells.CELLS}
    assert {2, 10, 100} <= {shape[1] for shape in shapes}
    assert any(shape[-1] % 2 for shape in shapes)
    assert {"float32 targets", "slice [:, 1:]"} <= {cell.special for cell in cells.CELLS}


@pytest.mark.parametrize(
    ("cell", "element"),
    [
        (cells.Cell("mse_loss", "bfloat16", (8, 16), "float32 targets"), (6, 2, 0)),
        (cells.Cell("mse_loss", "float32", (8, 16), "slice [:, 1:]"), (8, 4, 0)),
        (cells.Cell("gaussian_nll_loss", "bfloat16", (8, 16)), (6, 4, 0)),
        (
            cells.Cell("binary_cross_entropy_with_logits", "bfloat16", (8, 16), "pos_weight of classes"),
            (6, 2, 0),
        ),
        (cells.Cell("cross_entropy", "bfloat16", (8, 16), "weight of classes"), (2, 2, 1)),
        (cells.Cell("triplet_margin_loss", "float32", (8, 16)), (12, 12, 0)),
    ],
)
def test_what_an_element_needs(cell, element):
    assert (cell.element.loaded, cell.element.stored, cell.element.exponentials) == element

"""Triton's kernels of rows need no local memory: what a thread holds fits into registers at any length."""

from __future__ import annotations

import re
import subprocess
import tempfile

import pytest
import torch

import fused_losses.functional as L

pytest.importorskip("triton")

from triton import knobs
from triton.backends.compiler import GPUTarget

from fused_losses.triton_kernels import ahead_of_time

pytestmark = [
    pytest.mark.usefixtures("by_kernels_only"),
    pytest.mark.skipif(knobs.runtime.interpret, reason="TRITON_INTERPRET: kernels are interpreted"),
]

HOPPER = GPUTarget("cuda", 90, 32)
B, F, D = torch.bfloat16, torch.float32, torch.float64

# Classes of even and odd number, which are read in packs or one by one; and what takes the most registers.
ROWS = (
    *((B, classes, {}) for classes in (2, 10, 11, 100, 101, 1001)),
    (F, 101, {}),
    (D, 11, {}),
    (B, 10, {"weight": True, "label_smoothing": 0.1}),
    (B, 101, {"softcap": 30.0, "entropy": 0.01}),
    (F, 33, {"probabilities": True}),
)
MAPS = ((B, (19, 127)), (B, (21, 128)), (B, (100, 64)), (F, (19, 127)))
MARGINS = ((B, 2, {}), (B, 10, {}), (B, 101, {}), (F, 100, {"p": 2, "weight": True}))


def local_bytes(compiled):
    """How many bytes of local memory each thread of a compiled kernel has."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        found = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    used = {name: int(size) for name, size in re.findall(r"(STACK|LOCAL):(\d+)", found)}
    return used["STACK"] + used["LOCAL"]


def assert_no_local_memory(function, shape, dtype, options):
    """Of the forward that computes the gradient, the one that does not, and the backward."""
    options = dict(options)
    x = torch.empty(shape, dtype=dtype, device="meta", requires_grad=True)
    if options.pop("probabilities", False):
        target = torch.empty(shape, dtype=dtype, device="meta", requires_grad=True)
    else:
        target = torch.empty(shape[:1] + shape[2:], dtype=torch.long, device="meta")
    if options.get("weight"):
        options["weight"] = torch.empty(shape[1], dtype=dtype, device="meta")
    with ahead_of_time.compiling(HOPPER) as launches:
        for backward in ("fused", "recompute"):
            loss = function(x, target, **options, backward=backward)
            leaves = [operand for operand in (x, target) if operand.requires_grad]
            torch.autograd.grad(loss, leaves, torch.empty_like(loss))
    assert len(launches) >= 4
    compiled = {launch.key: launch for launch in launches}
    found = {key: local_bytes(launch.compiled) for key, launch in compiled.items()}
    assert not any(found.values()), [
        (compiled[key].kernel, size, compiled[key].constants) for key, size in found.items() if size
    ]


@pytest.mark.parametrize(("dtype", "classes", "options"), ROWS, ids=str)
def test_rows(dtype, classes, options):
    assert_no_local_memory(L.cross_entropy, (4096, classes), dtype, options)


@pytest.mark.parametrize(("dtype", "size"), MAPS, ids=str)
def test_maps(dtype, size):
    classes, side = size
    assert_no_local_memory(L.cross_entropy, (4, classes, side, side), dtype, {})


@pytest.mark.parametrize(("dtype", "classes", "options"), MARGINS, ids=str)
def test_margins(dtype, classes, options):
    assert_no_local_memory(L.multi_margin_loss, (4096, classes), dtype, options)

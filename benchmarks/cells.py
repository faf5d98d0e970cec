"""The calls that the report on machine code is about, and the launches that they make.

A cell is a loss, a dtype, a shape, and perhaps something special about the operands or the options. Nothing
is computed: Triton's kernels are compiled for a device that need not be there, and launches of CUDA's are
taken from the library that tests run on the CPU, which asks the same questions before a launch as on a GPU.
"""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from element_count import Element
from torch import Tensor
from triton.backends.compiler import GPUTarget

import fused_losses.functional
from fused_losses import devices
from fused_losses.registry import LOSSES
from fused_losses.triton_kernels import tiling
from fused_losses.triton_kernels.ahead_of_time import Launch, compiling

# An H100: multiprocessors, and what a block may have of shared memory, but for the 8 KiB that kernels
# declare.
PROCESSORS = 132
SHARED_BYTES = (227 << 10) - (8 << 10)

Inputs = list[Tensor]
Special = Callable[[Inputs], tuple[Inputs, dict[str, Any]]]


def _per_class(name: str) -> Special:
    def special(inputs: Inputs) -> tuple[Inputs, dict[str, Any]]:
        logits = inputs[0]
        return inputs, {name: torch.empty(logits.shape[1], dtype=logits.dtype, device=logits.device)}

    return special


def _weight_and_smoothing(inputs: Inputs) -> tuple[Inputs, dict[str, Any]]:
    inputs, keywords = _per_class("weight")(inputs)
    return inputs, {**keywords, "label_smoothing": 0.1}


def _probabilities(inputs: Inputs) -> tuple[Inputs, dict[str, Any]]:
    return [inputs[0], torch.empty_like(inputs[0], requires_grad=False)], {}


def _sliced(inputs: Inputs) -> tuple[Inputs, dict[str, Any]]:
    """The first operand is a slice of a wider tensor: its rows start off a multiple of 16 bytes."""
    rows, columns = inputs[0].shape
    wider = torch.empty(rows, columns + 1, dtype=inputs[0].dtype, device=inputs[0].device)
    return [wider[:, 1:].requires_grad_(), *inputs[1:]], {}


SPECIAL: dict[str, Special] = {
    "": lambda inputs: (inputs, {}),
    "float32 targets": lambda inputs: ([inputs[0], *(x.float() for x in inputs[1:])], {}),
    "pos_weight of classes": _per_class("pos_weight"),
    "weight of classes": _per_class("weight"),
    "slice [:, 1:]": _sliced,
    "sum": lambda inputs: (inputs, {"reduction": "sum"}),
    "label_smoothing": lambda inputs: (inputs, {"label_smoothing": 0.1}),
    "weight and label_smoothing": _weight_and_smoothing,
    "z_loss": lambda inputs: (inputs, {"z_loss": 1e-4}),
    "softcap": lambda inputs: (inputs, {"softcap": 30.0}),
    "probabilities": _probabilities,
}


@dataclass(frozen=True)
class Cell:
    """A call of a loss."""

    loss: str
    dtype: str
    shape: tuple[int, ...]
    special: str = ""
    """A key of SPECIAL."""

    @property
    def is_pointwise(self) -> bool:
        return LOSSES[self.loss].family == "pointwise"

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What identifies the cell in a table."""
        return self.loss, self.dtype, "x".join(map(str, self.shape)), self.special

    def operands(self, device: str) -> tuple[Inputs, dict[str, Any]]:
        """Tensors without content, and keyword arguments."""
        loss = LOSSES[self.loss]
        few = loss.inputs((1, *self.shape[1:]), torch.Generator().manual_seed(0))
        dtype = getattr(torch, self.dtype)
        inputs = [
            torch.empty(
                self.shape[:1] + x.shape[1:],
                device=device,
                dtype=dtype if x.is_floating_point() else x.dtype,
                requires_grad=i in loss.trained,
            )
            for i, x in enumerate(few)
        ]
        inputs, keywords = SPECIAL[self.special](inputs)
        return inputs, {**loss.call, **keywords}

    @property
    def element(self) -> Element:
        """What a step must load and store for each element."""
        inputs, keywords = self.operands("meta")
        tensors = [*inputs, *(x for x in keywords.values() if isinstance(x, Tensor))]
        count = self.elements
        # A pointwise loss needs a number of each operand for each element, wherever that comes from; a row
        # may have numbers of its own.
        needed = [x for x in tensors if self.is_pointwise or x.numel() == count]
        return Element(
            sum(x.element_size() for x in needed),
            sum(x.element_size() * x.numel() for x in inputs if x.requires_grad) / count,
            exponentials=float(self.loss == "cross_entropy"),
        )

    @property
    def is_aligned(self) -> bool:
        """Whether all rows of all operands begin at multiples of 16 bytes, as the tensors do."""
        bytes_of_row = self.shape[-1] * getattr(torch, self.dtype).itemsize
        return bytes_of_row % 16 == 0 and "slice" not in self.special

    @property
    def is_usual(self) -> bool:
        """Whether it is a large call without anything special."""
        return not self.special and self.is_aligned

    @property
    def elements(self) -> int:
        return self.operands("meta")[0][0].numel()

    def steps(self, device: str) -> Iterator[str]:
        """Runs a step, and yields after each of its directions.

        A forward makes its gradient, and the backward makes it again.
        """
        inputs, keywords = self.operands(device)
        value = getattr(fused_losses.functional, self.loss)(*inputs, **keywords)
        yield "forward"
        # Any upstream gradient but 1, for which the forward's would do.
        torch.autograd.grad(value, [x for x in inputs if x.requires_grad], torch.full_like(value, 0.5))
        yield "backward"


def _by_direction(cell: Cell, device: str, launches: list[Any]) -> dict[str, list[Any]]:
    """What a step adds to the list of launches, by direction."""
    found = {}
    for direction in cell.steps(device):
        found[direction] = launches.copy()
        launches.clear()
    return found


def triton_launches(cell: Cell, target: GPUTarget) -> dict[str, list[Launch]]:
    """The launches of a cell by direction, compiled for the target.

    There are as many programs as tiles, as on a GPU with room for them.
    """
    with patch.object(tiling, "INTERPRETED_PROGRAMS", 1 << 30), compiling(target) as launches:
        return _by_direction(cell, "meta", launches)


@dataclass(frozen=True)
class CudaLaunch:
    """A launch that was not made."""

    kernel: str
    """The mangled name."""
    blocks: int
    threads: int
    shared_bytes: int
    argument: bytes


def cuda_launches(cell: Cell, library: Path) -> dict[str, list[CudaLaunch]]:
    """The launches of a cell by direction, as the CUDA library would make them on an H100."""
    with _taking(library) as launches:
        return _by_direction(cell, "cpu", launches)


@contextmanager
def _taking(library: Path) -> Iterator[list[CudaLaunch]]:
    loaded, kernels = _load(library)
    launches: list[CudaLaunch] = []

    def take(kernel: int, blocks: int, threads: int, shared: int, argument: int, size: int) -> None:
        sent = ctypes.string_at(argument, size)
        launches.append(CudaLaunch(kernels[kernel], blocks, threads, shared, sent))

    number, pointer, size = ctypes.c_uint, ctypes.c_void_p, ctypes.c_size_t
    hook = ctypes.CFUNCTYPE(None, pointer, number, number, size, pointer, size)(take)
    loaded.cuda_on_cpu_take_launches(hook, PROCESSORS, ctypes.c_long(SHARED_BYTES))
    try:
        yield launches
    finally:
        loaded.cuda_on_cpu_take_launches(None, PROCESSORS, ctypes.c_long(SHARED_BYTES))


@cache
def _load(library: Path) -> tuple[ctypes.CDLL, dict[int, str]]:
    """The library, and its functions by address. It takes over the CPU's operators in this process."""
    torch.ops.load_library(library)
    devices.compiled["cpu"] = f"{devices.CUDA}, on the CPU"
    loaded = ctypes.CDLL(str(library))
    listed = subprocess.run(["nm", "--defined-only", library], capture_output=True, text=True, check=True)
    symbols = {name: int(at, 16) for at, _, name in (line.split() for line in listed.stdout.splitlines())}
    known = "cuda_on_cpu_launches"
    base = (ctypes.cast(getattr(loaded, known), ctypes.c_void_p).value or 0) - symbols[known]
    return loaded, {base + at: name for name, at in symbols.items()}


ELEMENTS = [name for name, loss in LOSSES.items() if loss.family == "pointwise"]


def _cells() -> Iterator[Cell]:
    for name in ELEMENTS:
        for dtype in ("bfloat16", "float32"):
            yield Cell(name, dtype, (8192, 1024))
    for name, special in (
        ("mse_loss", "float32 targets"),
        ("mse_loss", "slice [:, 1:]"),
        ("binary_cross_entropy_with_logits", "float32 targets"),
        ("binary_cross_entropy_with_logits", "pos_weight of classes"),
        ("binary_cross_entropy_with_logits", "weight of classes"),
        ("binary_cross_entropy_with_logits", "slice [:, 1:]"),
    ):
        yield Cell(name, "bfloat16", (8192, 1024), special)
    yield Cell("mse_loss", "bfloat16", (8192, 1023), "slice [:, 1:]")
    # Few enough rows that a GPU has room for all their tiles at once: so a launch tells how many elements a
    # tile has.
    for dtype in ("bfloat16", "float32"):
        yield Cell("cross_entropy", dtype, (64, 32768))
        yield Cell("cross_entropy", dtype, (64, 131072))
        yield Cell("nll_loss", dtype, (64, 32768))
        yield Cell("multi_margin_loss", dtype, (448, 1024))
        yield Cell("multilabel_margin_loss", dtype, (448, 1024))
        yield Cell("triplet_margin_loss", dtype, (4096, 128))
        yield Cell("triplet_margin_with_distance_loss", dtype, (4096, 128))
        yield Cell("cosine_embedding_loss", dtype, (4096, 128))
    for shape in (
        (192, 4096),
        (768, 1000),
        (768, 1001),
        (64, 50257),
        (6144, 100),
        (12288, 10),
        (32768, 2),
        (2, 21, 128, 128),
        (2, 19, 127, 127),
    ):
        yield Cell("cross_entropy", "bfloat16", shape, "sum")
    for special in (
        "weight of classes",
        "label_smoothing",
        "weight and label_smoothing",
        "z_loss",
        "softcap",
        "probabilities",
    ):
        yield Cell("cross_entropy", "bfloat16", (64, 32768), special)
    for shape in ((4096, 10), (4096, 100)):
        yield Cell("multi_margin_loss", "bfloat16", shape)


CELLS = list(_cells())

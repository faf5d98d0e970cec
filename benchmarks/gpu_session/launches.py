"""Which kernels a step of every loss launches, and how long each takes.

    python launches.py [--csv FILE] [--device cpu --tiny] [--backend compiled --loss cross_entropy]

Without a file, it measures nothing, but runs a step of each, for other profilers. With one, on a GPU, it
fails if a forward or a backward does not take the one launch that README promises, or if a backend that is
asked for does not serve. A CPU has no launches: there, the package's operators are counted.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import fused_losses
import fused_losses.functional as L
from fused_losses import backends, devices
from fused_losses.registry import LOSSES

# 64M elements: in bfloat16, several times the second-level cache of a GPU of 2025. Rows of classes are few
# and long, as only then the mean over them takes one launch. CUDA's kernels count up to 16384 labels in the
# same launch; Triton's do where a row has 32 bytes for each program, and no more programs than rows run.
SHAPES = {
    "elements": (8192, 8192),
    "classes": (2048, 32768),
    "scores": (65536, 1024),
    "vectors": (524288, 128),
}
TINY = {"elements": (8, 70), "classes": (8, 70), "scores": (8, 70), "vectors": (8, 70)}

LONGEST = 200  # characters of a kernel's name: those of templates go on for thousands

FIELDS = ("loss", "shape", "backend", "pass", "launches", "microseconds", "kernel")


def inputs_of(name: str, shape: tuple[int, ...], device: str) -> list[Tensor]:
    """As in training, bfloat16; those that are trained require grad, and the first is no leaf, as logits."""
    loss = LOSSES[name]
    with torch.device(device):
        made = loss.inputs(shape, torch.Generator(device).manual_seed(0))
    inputs = [x.bfloat16() if x.is_floating_point() else x for x in made]
    for i in loss.trained:
        inputs[i].requires_grad_()
    return [inputs[0] * 1, *inputs[1:]]


def launches(work: Callable[[], Any], device: str) -> tuple[Any, list[tuple[str, float]]]:
    """What `work` returns, and the name and the microseconds of each kernel that it launches."""
    if device == "cuda":
        torch.cuda.synchronize()
    activity = ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity], acc_events=True) as found:  # or it warns that it forgets some
        result = work()
        if device == "cuda":
            torch.cuda.synchronize()
    events = [event for event in found.events() if _is_kernel(event, device)]
    return result, [(event.name, event.time_range.elapsed_us()) for event in events]


def _is_kernel(event: Any, device: str) -> bool:
    if device == "cuda":
        return event.device_type == DeviceType.CUDA and not event.name.startswith(("Memcpy", "Memset"))
    return event.name.startswith("fused_losses::")


def passes(name: str, shape: tuple[int, ...], device: str) -> Iterator[tuple[str, list[tuple[str, float]]]]:
    """Of a forward and a backward, after others that have compiled and allocated what stays."""
    for _ in range(2):
        list(step(name, shape, device, bare))
    yield from step(name, shape, device, launches)


def bare(work: Callable[[], Any], device: str) -> tuple[Any, list[tuple[str, float]]]:
    """Like `launches`, with nothing measured."""
    return work(), []


def step(
    name: str, shape: tuple[int, ...], device: str, run: Callable[..., Any]
) -> Iterator[tuple[str, list[tuple[str, float]]]]:
    """A forward, and then a backward, each within `run`, which is `launches` or `bare`."""
    loss, function = LOSSES[name], getattr(L, name)
    inputs = inputs_of(name, shape, device)
    value, found = run(lambda: function(*inputs, **loss.call), device)
    yield "forward", found
    # Made before the backward, as its kernel is not the loss's.
    upstream = torch.ones_like(value)
    wanted = [inputs[i] for i in loss.trained]
    _, found = run(lambda: torch.autograd.grad(value, wanted, upstream), device)
    yield "backward", found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--backend", nargs="+", choices=backends.BACKENDS, default=backends.BACKENDS)
    parser.add_argument("--loss", nargs="+", default=list(LOSSES))
    options = parser.parse_args()
    shapes = TINY if options.tiny else SHAPES
    serving = [backend for backend in options.backend if serves(backend, options.device)]
    absent = [backend for backend in options.backend if backend not in serving]
    for backend in absent:
        print(f"launches: {options.device} has no kernels of the backend {backend}")
    # One backend after the other: if time ends while Triton compiles, the compiled kernels' times are there.
    chosen = [(name, shapes[LOSSES[name].shapes], each) for each in serving for name in options.loss]
    if options.csv is None:
        for name, shape, backend in chosen:
            with fused_losses.backend(backend):
                list(step(name, shape, options.device, bare))
        return 1 if absent else 0
    with options.csv.open("w", newline="") as file:
        wrong = list(write(file, chosen, options.device))
    print(f"launches: {len(wrong)} passes do not take one launch", *wrong, sep="\n  ")
    return 1 if wrong or absent else 0


def serves(backend: str, device: str) -> bool:
    """Whether the kernels are the backend's own: where it has none, the other backend's serve in its name."""
    if device == "cuda":
        torch.cuda.init()  # which is when a library learns that it was built for other GPUs
    with fused_losses.backend(backend):
        served = devices.kernels_for(device)
    return served is not None and served.startswith("Triton") == (backend == "triton")


def write(file: TextIO, chosen: list[tuple[str, tuple[int, ...], str]], device: str) -> Iterator[str]:
    """Measures each loss; yields those that do not take one launch for each pass."""
    writer = csv.writer(file)
    writer.writerow(FIELDS)
    # On a CPU, a backward only hands out what the forward has made.
    expected = {"forward": {1}, "backward": {1} if device == "cuda" else {0, 1}}
    for name, shape, backend in chosen:
        with fused_losses.backend(backend):
            for direction, found in passes(name, shape, device):
                for kernel, microseconds in found:
                    row = (name, "x".join(map(str, shape)), backend, direction, len(found))
                    writer.writerow((*row, round(microseconds, 2), kernel[:LONGEST]))
                file.flush()
                if len(found) not in expected[direction]:
                    yield f"{name}, {backend}, {direction}: {len(found)}"


if __name__ == "__main__":
    sys.exit(main())

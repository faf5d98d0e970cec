"""``step``: a step of one provider on one case, by itself or under one of NVIDIA's profilers."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer

from fused_losses.bench.accuracy import run
from fused_losses.bench.cases import DTYPES, Case
from fused_losses.bench.heads import HEADS
from fused_losses.bench.options import DeviceOption, among, cases_of, shape
from fused_losses.bench.providers import PROVIDERS, Unavailable, serving
from fused_losses.bench.report import console
from fused_losses.bench.variants import USUAL, VARIANTS
from fused_losses.registry import LOSSES

# Steps before those that a profiler sees: they compile, and bring memory into use.
WARM_UP_STEPS = 3

# How each profiler is called: it sees what is between the calls of cudaProfilerStart and cudaProfilerStop.
NCU = ("ncu", "--profile-from-start=off", "--set=full", "--force-overwrite", "--export")
NSYS = ("nsys", "profile", "--capture-range=cudaProfilerApi", "--force-overwrite=true", "--output")


def command(
    loss: Annotated[str, typer.Argument(help="A loss that `list` has.")],
    shape_: Annotated[str, typer.Option("--shape", help="Of the first input, as 8192x32768.")],
    dtype: Annotated[str, typer.Option("--dtype", help="One that `list` has.")] = "bfloat16",
    provider: Annotated[str, typer.Option("--provider", help="One that `list` has.")] = "cuda fused",
    variant: Annotated[str, typer.Option("--variant", help="One that `list` has.")] = "usual",
    device: DeviceOption = "cuda",
    steps: Annotated[int, typer.Option("--steps", min=1, help="How many steps the profiler sees.")] = 1,
    ncu: Annotated[
        Path | None, typer.Option("--ncu", help="Run under Nsight Compute, which writes this report.")
    ] = None,
    nsys: Annotated[
        Path | None, typer.Option("--nsys", help="Run under Nsight Systems, which writes this report.")
    ] = None,
) -> None:
    """Runs a forward and a backward, for a profiler to look at."""
    for value, known in (
        (loss, [*LOSSES, *HEADS]),
        (dtype, DTYPES),
        (provider, PROVIDERS),
        (variant, ["usual", *filter(None, VARIANTS)]),
    ):
        among(known)([value])
    called = USUAL if variant == "usual" else variant
    (case,) = cases_of(["large"], [loss], [dtype], device, [shape(shape_)], [called])
    if provider not in serving(case, [provider]):
        raise typer.BadParameter(f"{provider} does not have {case}")
    if ncu is not None or nsys is not None:
        chosen = [f"--shape={shape_}", f"--dtype={dtype}", f"--provider={provider}", f"--variant={variant}"]
        program = [sys.executable, "-m", "fused_losses.bench", "step", loss, *chosen]
        program += [f"--device={device}", f"--steps={steps}"]
        profiler = [*NCU, str(ncu)] if ncu is not None else [*NSYS, str(nsys)]
        if shutil.which(profiler[0]) is None:
            raise typer.BadParameter(f"{profiler[0]} is not on the PATH")
        raise typer.Exit(subprocess.run([*profiler, *program], check=False).returncode)
    try:
        kernels = _run(case, provider, steps)
    except Unavailable as reason:
        raise typer.BadParameter(f"{provider} cannot run here: {reason}") from reason
    console.print(f"{case}, {provider}: {steps} by {kernels or 'its own kernels'}", markup=False)


def _run(case: Case, provider: str, steps: int) -> str:
    """Runs steps, the first of them unseen, and returns whose kernels served them."""
    inputs = case.inputs(seed=0)
    with PROVIDERS[provider].kernels(case.device) as kernels:
        function = PROVIDERS[provider].make(case)
        for _ in range(WARM_UP_STEPS):
            run(function, inputs, "step")
        if case.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.profiler.start()
        for _ in range(steps):
            run(function, inputs, "step")
        if case.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.profiler.stop()
    return kernels

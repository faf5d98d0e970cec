"""Peak extra memory of one training step, measured in a fresh process, and a limit for others (Linux only).

``python -m fused_losses.bench.memory '{"loss": …}'`` is that process; `peak_bytes` starts it.
"""

import ctypes
import gc
import json
import resource
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

import fused_losses
from fused_losses.bench.cases import Case
from fused_losses.bench.providers import PROVIDERS
from fused_losses.bench.timing import fresh, prepare

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
# Written to CLEAR_REFS, this sets the peak of the resident size (VmHWM) to what is resident now; see proc(5).
RESET_PEAK = "5"

# Bytes that a provider of others may allocate: several times what any case needs in eager torch, and less
# than any machine that is worth a benchmark has. Compiled multilabel_margin_loss asks for N x C x C numbers
# and is refused them, as a process that is killed for memory would end the run of all providers.
RUN_BYTES = 8 << 30

# The same for losses behind a linear layer: enough for a step of eager torch with 4 GiB
# of logits.
HEADS_BYTES = 18 << 30


def available() -> bool:
    """Whether this system can measure the peak of a single step."""
    return CLEAR_REFS.exists()


@contextmanager
def limited(bytes_: int) -> Iterator[None]:
    """Lets an allocation of this process beyond so many more bytes raise, within the `with` block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = _status("VmData") + bytes_
    if (soft == resource.RLIM_INFINITY or wanted < soft) and (
        hard == resource.RLIM_INFINITY or wanted < hard
    ):
        resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def peak_bytes(case: Case, provider: str, threads: int) -> int | None:
    """Peak extra memory of a step, in bytes; None where it could not be measured."""
    order = json.dumps({"case": asdict(case), "provider": provider, "threads": threads})
    command = [sys.executable, "-m", "fused_losses.bench.memory", order]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return int(done.stdout)
    reason = done.stderr.strip().rpartition("\n")[2]
    warnings.warn(f"no peak memory of {provider} on {case}: {reason}", stacklevel=2)
    return None


def _status(field: str) -> int:
    """A field of the process's status, in bytes: VmRSS is resident now, VmHWM its peak, VmData allocated."""
    for line in STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.removesuffix("kB")) * 1024
    raise LookupError(f"{STATUS} has no {field}")


def _release_free_memory() -> None:
    """Gives freed memory back to the system, from this package's cache and from the C heap."""
    gc.collect()
    fused_losses.empty_cache()
    # Only glibc has the function, and only glibc's heap needs it.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def measure(case: Case, provider: str) -> int:
    """Peak extra memory of the second step of this process, in bytes.

    The first step allocates what later ones find: thread pools, compiled code, lazy imports.
    """
    function = PROVIDERS[provider].make(case)
    inputs = case.inputs(seed=0)
    prepare("step", function, [fresh(inputs)])()
    step = prepare("step", function, [fresh(inputs)])
    _release_free_memory()
    before = _status("VmRSS")
    CLEAR_REFS.write_text(RESET_PEAK)
    step()
    return max(0, _status("VmHWM") - before)


if __name__ == "__main__":
    order = json.loads(sys.argv[1])
    torch.set_num_threads(order["threads"])
    case = Case(**{**order["case"], "shape": tuple(order["case"]["shape"])})
    print(measure(case, order["provider"]))

"""How much memory a loss layer and a training step take, as the kernel counts it.

A profiler of torch's allocator would miss buffers that an extension maps by itself; the kernel
counts every resident page, whoever asked for it.
"""

import json
import subprocess
import sys
from pathlib import Path

import torch
from training import LOSSES, Trainer

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
KIB = 1024  # the kernel says "kB" and means KiB
MIB = 2**20


def available() -> bool:
    """Say whether this system (Linux, as a rule) lets a process reset its own peak."""
    return STATUS.exists() and CLEAR_REFS.exists()


def _read(field: str) -> int:
    """Return one of the memory sizes in the process status, in bytes."""
    for line in STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * KIB
    raise LookupError(f"{STATUS} has no field {field}")


def resident_bytes() -> int:
    """Memory held now."""
    return _read("VmRSS")


def peak_bytes() -> int:
    """The most memory held since the last `reset_peak`."""
    return _read("VmHWM")


def reset_peak() -> None:
    """Start the peak again from the memory held now."""
    CLEAR_REFS.write_text("5")  # the value that proc(5) gives to resetting VmHWM


def _measure(name: str, vocabulary: int, batch: int, context: int, seed: int) -> tuple[int, int]:
    """Return how far one loss layer and one training step raise this process's memory.

    One tiny step first creates the optimizer's state and loads code and threads, which training
    pays for once. The full-sized step is the first of its size, so that buffers which a library
    keeps for later steps are counted too.
    """
    trainer = Trainer(LOSSES[name], vocabulary, context, seed)
    trainer.step(torch.zeros(1, 2, dtype=torch.long), torch.zeros(2, dtype=torch.long))
    tokens = torch.randint(vocabulary, (batch, context))
    targets = torch.randint(vocabulary, (batch * context,))

    before_step = resident_bytes()
    reset_peak()
    logits = trainer.model(tokens)
    forward_peak = peak_bytes()

    before_loss = resident_bytes()
    reset_peak()
    _, gradient = trainer.loss_layer(logits, targets)
    loss_peak = peak_bytes()

    trainer.update(logits, gradient)
    step_peak = max(forward_peak, peak_bytes())
    return loss_peak - before_loss, step_peak - before_step


def extra_memory(
    vocabulary: int, batch: int, context: int, seed: int
) -> dict[str, tuple[float | None, float | None]]:
    """Return for each loss the extra MiB of its layer and of a step, None where unknown.

    Each is measured in a fresh process, where there is no freed memory to reuse.
    """
    if not available():
        return dict.fromkeys(LOSSES, (None, None))
    sizes = [str(number) for number in (vocabulary, batch, context, seed)]
    processes = {
        name: subprocess.Popen([sys.executable, __file__, name, *sizes], stdout=subprocess.PIPE, text=True)
        for name in LOSSES
    }
    result: dict[str, tuple[float | None, float | None]] = {}
    for name, process in processes.items():
        answer, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(f"measuring the memory of {name} failed")
        loss_layer, step = json.loads(answer)
        result[name] = loss_layer / MIB, step / MIB
    return result


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], *map(int, sys.argv[2:]))))

"""Whether a wheel serves, by the Python that it is installed for: `python tests/package/wheel_smoke.py`.

Every loss, forward and backward, against torch's, on each instruction set that the machine runs.
Nothing may fall back to torch, and no compiler is within reach. Needs nothing but the wheel and torch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

# Widest first, as `fused_losses.backends` has them; a machine runs every set after its own, too.
INSTRUCTION_SETS = ("avx512", "avx2", "default")

SHAPES = {"classes": (64, 100), "scores": (64, 100), "elements": (37, 53), "vectors": (64, 48)}


def without_compiler(**more: str) -> dict[str, str]:
    """The environment, in which no program is found, and calls that would run through torch raise."""
    kept = {
        name: value for name, value in os.environ.items() if name not in ("PATH", "PYTHONPATH", "CUDA_HOME")
    }
    return {
        **kept,
        "PATH": "",
        "CC": "/nonexistent",
        "CXX": "/nonexistent",
        "FUSED_LOSSES_STRICT": "1",
        **more,
    }


def check_losses(isa: str) -> None:
    """In a process of its own, whose ATEN_CPU_CAPABILITY is `isa`."""
    import torch

    import fused_losses
    from fused_losses import backends, devices, functional, registry

    assert Path(fused_losses.__file__).is_relative_to(sys.prefix), f"not installed: {fused_losses.__file__}"
    assert backends.cpu_library is not None and backends.cpu_library.name == f"_cpu_{isa}.so"
    assert devices.kernels_for("cpu") == f"C++ ({isa})"
    for loss in registry.TWINS.values():
        made = loss.inputs(SHAPES[loss.shapes], torch.Generator().manual_seed(0))
        results = []
        for namespace, module in ((functional, fused_losses), (torch.nn.functional, torch.nn)):
            inputs = [tensor.clone().requires_grad_(i in loss.trained) for i, tensor in enumerate(made)]
            value = getattr(namespace, loss.name)(*inputs, **loss.call)
            value.backward()
            again = getattr(module, loss.module)(**loss.call)(*inputs)
            torch.testing.assert_close(again, value, rtol=0, atol=0)
            results.append([value.detach(), *(inputs[i].grad for i in loss.trained)])
        torch.testing.assert_close(*results)  # the tests judge accuracy; this, that the right kernels ran
    features, head, target = torch.randn(64, 48), torch.randn(100, 48), torch.arange(64)
    over_head = functional.linear_cross_entropy(features, head, target)
    torch.testing.assert_close(over_head, torch.nn.functional.cross_entropy(features @ head.T, target))
    print(f"torch {torch.__version__}, {isa}: {len(registry.TWINS)} losses agree with torch's")


def usable_instruction_sets() -> tuple[str, ...]:
    import torch

    best = torch.backends.cpu.get_cpu_capability().lower()
    return INSTRUCTION_SETS[INSTRUCTION_SETS.index(best) :]


def run(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        env=without_compiler(**environment),
        cwd=sys.prefix,  # not where the sources are, which `-m` would find first
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} with {environment}:\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> None:
    if len(sys.argv) > 1:
        return check_losses(sys.argv[1])
    report = json.loads(run("-m", "fused_losses.info", "--json"))
    assert report["built"]["CPU libraries"] == ["default", "avx2", "avx512"], report["built"]
    for isa in usable_instruction_sets():
        print(run(__file__, isa, ATEN_CPU_CAPABILITY=isa), end="")
    return None


if __name__ == "__main__":
    main()

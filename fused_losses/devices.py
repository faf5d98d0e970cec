"""Which kernels serve which type of device: a table that `fused_losses.backends` fills."""

from __future__ import annotations

from fused_losses import modes

CUDA = "CUDA C++"
"""How the entry of `compiled` begins where the CUDA library serves."""

compiled: dict[str, str] = {}
"""Types of devices that compiled libraries serve, and which library."""

triton: dict[str, str] = {}
"""Types of devices that Triton's kernels serve at present, to those who prefer them or have no others."""


def are_served(device_type: str) -> bool:
    """Whether there are kernels for such devices; tensors elsewhere go to torch's own functions."""
    return device_type in compiled or device_type in triton


def kernels_for(device_type: str) -> str | None:
    """Whose kernels serve such devices here and now; None if no one's."""
    prefers_triton = modes.backend.get() == "triton"
    first, second = (triton, compiled) if prefers_triton else (compiled, triton)
    return first.get(device_type) or second.get(device_type)


def table() -> dict[str, str]:
    """Types of devices that are served here and now, and whose kernels serve them."""
    return {device: kernels_for(device) or "" for device in sorted({*compiled, *triton})}


def preferred() -> str | None:
    """The backend that this thread or task prefers; None where there is no choice, or a compiler looks."""
    return modes.backend.get() if triton and not modes.is_compiling() else None

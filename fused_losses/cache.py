"""The memory that gradients on the CPU come from: large buffers are kept for the next step when freed."""

from __future__ import annotations

import torch

from fused_losses import devices


def cached_bytes() -> int:
    """Bytes of freed gradient buffers held for the next step.

    Example:
        >>> fused_losses.empty_cache()
        >>> fused_losses.cached_bytes()
        0
    """
    return int(torch.ops.fused_losses.cached_bytes()) if "cpu" in devices.compiled else 0


def empty_cache() -> None:
    """Gives all freed gradient buffers back to the system, as torch.cuda.empty_cache does.

    Example:
        >>> fused_losses.empty_cache()
    """
    if "cpu" in devices.compiled:
        torch.ops.fused_losses.empty_cache()


def set_cache_limit(bytes: int) -> None:
    """Sets how many bytes of freed gradient buffers may be held (1 GiB by default).

    Args:
        bytes: the limit. Buffers beyond it are given back at once, and larger ones come from torch's
            allocator. So with 0, all do, and the storages of gradients can be resized, as torch's.

    Raises:
        ValueError: a negative number, or one of more than 64 bits.

    Example:
        >>> fused_losses.set_cache_limit(2**28)  # 256 MiB
    """
    if not 0 <= bytes < 2**63:
        raise ValueError(
            f"the limit must be a number of bytes, not negative and of 64 bits, but it is {bytes}"
        )
    if "cpu" in devices.compiled:
        torch.ops.fused_losses.set_cache_limit(bytes)

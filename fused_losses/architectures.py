"""Which GPUs a CUDA library runs on, by what it was built for."""

from __future__ import annotations

import re
from collections.abc import Iterable

_ARCHITECTURE = re.compile(r"(?P<major>\d+)\.(?P<minor>\d)(?P<only>[af]?)(?P<ptx>\+PTX)?")


def serve(architectures: Iterable[str], capability: tuple[int, int]) -> bool:
    """Whether one of the architectures, as in TORCH_CUDA_ARCH_LIST, serves GPUs of a compute capability.

    Machine code for 9.0 runs on GPUs from 9.0 up to the next major version; that for "9.0a" on 9.0 alone.
    "9.0+PTX" is compiled by the driver for all later GPUs. A name, such as "Hopper", says nothing here, and
    is taken for one that serves: if it does not, a launch raises.
    """
    return any(_serves(architecture, capability) for architecture in architectures)


def _serves(architecture: str, capability: tuple[int, int]) -> bool:
    found = _ARCHITECTURE.fullmatch(architecture)
    if found is None:
        return True
    built = int(found["major"]), int(found["minor"])
    if found["only"] == "a":
        return capability == built
    # Code for a family ("10.0f") runs on GPUs of its major version, be it compiled or PTX.
    if capability[0] != built[0] and (found["only"] or not found["ptx"]):
        return False
    return capability >= built

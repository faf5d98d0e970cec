"""Which kernels serve which device: compiled libraries, for the CPU and for CUDA, before Triton's."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch

from fused_losses.architectures import serve

logger = logging.getLogger("fused_losses")
logger.addHandler(logging.NullHandler())

# From the widest down: a machine runs every set after its own, too.
_INSTRUCTION_SETS = ("avx512", "avx2", "default")

BACKENDS = ("compiled", "triton")

CUDA = "CUDA C++"
"""What `devices` says, to begin with, where the CUDA library serves."""

devices: dict[str, str] = {}
"""Device types that have kernels, and whose they are; tensors elsewhere go to torch's own functions."""

cpu_library: Path | None = None
"""The library that serves the CPU: the best of those built that the machine can run."""

cuda_library_rests: str | None = None
"""Why the CUDA library serves no GPU, though it is there."""

_compiled: dict[str, str] = {}
"""Device types that compiled libraries serve."""

_preferred = "compiled"
_triton_library: torch.library.Library | None = None


def built_cpu_libraries() -> dict[str, Path]:
    """The CPU libraries in this installation, by instruction set."""
    folder = Path(__file__).parent
    paths = {name: folder / f"_cpu_{name}.so" for name in _INSTRUCTION_SETS}
    return {name: path for name, path in paths.items() if path.exists()}


def usable_instruction_sets() -> tuple[str, ...]:
    """Those that torch would use on this machine, best first; ATEN_CPU_CAPABILITY lowers it."""
    best = torch.backends.cpu.get_cpu_capability().lower()
    start = _INSTRUCTION_SETS.index(best) if best in _INSTRUCTION_SETS else -1
    return _INSTRUCTION_SETS[start:]


def load() -> None:
    """Loads what there is. Without any kernels, everything still works, through torch."""
    _load_cpu_library()
    _load_cuda_library()
    wanted = os.environ.get("FUSED_LOSSES_BACKEND", "compiled")
    if wanted not in BACKENDS:
        logger.warning("fused_losses: FUSED_LOSSES_BACKEND=%s is none of %s", wanted, ", ".join(BACKENDS))
        wanted = "compiled"
    _prefer(wanted)


def _load_cpu_library() -> None:
    global cpu_library
    built = built_cpu_libraries()
    for name in usable_instruction_sets():
        if name not in built:
            continue
        try:
            torch.ops.load_library(str(built[name]))
        except OSError as error:
            logger.warning("fused_losses: %s does not load (%s)", built[name].name, error)
            continue
        cpu_library = built[name]
        _compiled["cpu"] = f"C++ ({name})"
        return
    logger.warning(
        "fused_losses: no CPU library for %s among those built (%s); losses run through torch. "
        "Reinstall with FUSED_LOSSES_CPU=all to build every one.",
        " or ".join(usable_instruction_sets()),
        ", ".join(built) or "none",
    )


def _load_cuda_library() -> None:
    path = Path(__file__).parent / "_cuda.so"
    if not path.exists():
        return
    try:
        torch.ops.load_library(str(path))
    except OSError as error:  # built for a torch with CUDA, and run with one without
        logger.warning("fused_losses: %s does not load (%s)", path.name, error)
        return
    _compiled["cuda"] = f"{CUDA} ({', '.join(_cuda_architectures()) or 'unknown architectures'})"
    if torch.cuda.is_initialized():
        _check_gpus()
    else:
        # When someone else initialises CUDA: a process that did so at import could not fork any more.
        torch.cuda._lazy_call(_check_gpus)


def _check_gpus() -> None:
    """Leaves all GPUs to Triton, or to torch, if there is one that the CUDA library was not built for."""
    global cuda_library_rests
    built = _cuda_architectures()
    for index in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(index)
        if built and not serve(built, (major, minor)):
            name = torch.cuda.get_device_name(index)
            cuda_library_rests = f"it is built for {', '.join(built)}, but {name} is {major}.{minor}"
            del _compiled["cuda"]
            _prefer(_preferred)
            logger.warning(
                "fused_losses: the CUDA library serves no GPU: %s; %s serves them",
                cuda_library_rests,
                devices.get("cuda", "torch"),
            )
            return


def _cuda_architectures() -> list[str]:
    """Nothing if that is unknown."""
    try:
        from fused_losses import _C
    except ImportError:
        return []
    architectures: list[str] = _C.cuda_architectures
    return architectures


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Prefers a backend's kernels, where it has some, within the context and for the whole process.

    Both compute the same from the same saved tensors, so a backward may run under another backend than its
    forward did.

    Args:
        name: "compiled", the default; or "triton", which serves GPUs (and CPU tensors, if Triton interprets
            its kernels because the environment has TRITON_INTERPRET=1). Where only one has kernels, they
            serve anyway.

    Raises:
        ValueError: another name.
        RuntimeError: Triton is not installed.
    """
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, but it is {name!r}")
    if name == "triton" and not has_triton():
        raise RuntimeError("fused_losses: Triton is not installed")
    before = _preferred
    _prefer(name)
    try:
        yield
    finally:
        _prefer(before)


def has_triton() -> bool:
    """Whether Triton is installed; nothing is imported."""
    return find_spec("triton") is not None


def _prefer(name: str) -> None:
    """Gives Triton its dispatch key, or takes it away."""
    global _preferred, _triton_library
    _preferred = name
    served = _triton_device() if _wants_triton() else None
    if served is not None and (name == "triton" or served not in _compiled):
        _triton_library = _triton_library or _register_triton()
    elif _triton_library is not None:
        _triton_library._destroy()
        _triton_library = None
    devices.clear()
    devices.update(_compiled)
    if _triton_library is not None and served is not None:
        devices[served] = "Triton" if served == "cuda" else "Triton, interpreted"


def _wants_triton() -> bool:
    # On request, or where a GPU is that nothing else serves; counting GPUs does not initialise CUDA.
    if not has_triton():
        return False
    return _preferred == "triton" or ("cuda" not in _compiled and torch.cuda.device_count() > 0)


def _triton_device() -> str:
    return "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"


def _register_triton() -> torch.library.Library | None:
    try:
        from fused_losses import triton_kernels

        return triton_kernels.register()
    except Exception as error:  # whatever a broken installation of Triton raises when it is imported
        logger.warning("fused_losses: Triton's kernels cannot be used (%s: %s)", type(error).__name__, error)
        return None

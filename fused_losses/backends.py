"""Which kernels serve which device: compiled libraries, for the CPU and for CUDA, before Triton's."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import torch

from fused_losses import devices, modes
from fused_losses.architectures import serve
from fused_losses.names import BackendName
from fused_losses.registry import LOSSES

# From the widest registers to the narrowest: a machine runs every set after its own, too.
_INSTRUCTION_SETS = ("avx512", "avx2", "default")

BACKENDS = get_args(BackendName)

_REINSTALL = "Install again: pip install --no-build-isolation . in the source tree."

cpu_library: Path | None = None
"""The library that serves the CPU: the best of those built that the machine can run."""

cuda_library_rests: str | None = None
"""Why the CUDA library serves no GPU, though it is there."""

_lock = threading.RLock()
"""Held while Triton's kernels are registered or taken away, which concerns the whole process."""

_who_prefer_triton = 0
"""How many `with backend("triton")` blocks are open, in all threads."""

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
    """Loads what there is. Without any kernels, everything still works, through torch; a warning says so."""
    _load_cpu_library()
    _load_cuda_library()
    _check_preference()
    _register_or_remove_triton()
    _warn_of_stale_libraries()


def _warn(problem: str, remedy: str) -> None:
    warnings.warn(f"fused_losses: {problem}. {remedy}", stacklevel=3)


def _check_preference() -> None:
    if modes.PREFERRED not in BACKENDS:
        _warn(
            f"FUSED_LOSSES_BACKEND is {modes.PREFERRED!r}, which is none of {', '.join(BACKENDS)}",
            "Correct it; until then, it means nothing.",
        )
    if modes.PREFERRED == "triton" and not has_triton():
        _warn("FUSED_LOSSES_BACKEND is triton, which is not installed", "Install it: pip install triton.")


def _warn_of_stale_libraries() -> None:
    """Names losses that libraries built earlier have no kernels for: torch's error would not say so."""
    try:
        from fused_losses import _C
    except ImportError:
        return
    missing = LOSSES.keys() - {name for names in _C.losses.values() for name in names}
    if missing:
        _warn(
            f"the libraries were built without {', '.join(sorted(missing))}: their calls fail",
            _REINSTALL,
        )


def _load_cpu_library() -> None:
    global cpu_library
    built = built_cpu_libraries()
    fitting = [name for name in usable_instruction_sets() if name in built]
    for name in fitting:
        try:
            torch.ops.load_library(str(built[name]))
        except OSError as error:
            _warn(f"{built[name].name} does not load ({error})", _REINSTALL)
            continue
        cpu_library = built[name]
        devices.compiled["cpu"] = f"C++ ({name})"
        return
    if fitting:  # of which a warning says why they do not load
        return
    if built:
        _warn(
            f"no CPU library was built for {' or '.join(usable_instruction_sets())}, as this machine runs, "
            f"but for {', '.join(built)}; losses on the CPU run through torch",
            "Install again with FUSED_LOSSES_CPU=all in the environment, which builds all that there are.",
        )
    else:
        _warn("no CPU library was built; losses on the CPU run through torch", _REINSTALL)


def _load_cuda_library() -> None:
    path = Path(__file__).parent / "_cuda.so"
    if not path.exists():
        return
    try:
        torch.ops.load_library(str(path))
    except OSError as error:  # built for a torch with CUDA, and run with one without
        _warn(
            f"{path.name} does not load ({error})",
            "Install again, or with FUSED_LOSSES_CUDA=0 in the environment if torch is to have no CUDA.",
        )
        return
    devices.compiled["cuda"] = (
        f"{devices.CUDA} ({', '.join(_cuda_architectures()) or 'unknown architectures'})"
    )
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
            del devices.compiled["cuda"]
            _register_or_remove_triton()
            _warn(
                f"the CUDA library serves no GPU: {cuda_library_rests}; "
                f"{devices.kernels_for('cuda') or 'torch'} serves them",
                f"Install again with {major}.{minor} in TORCH_CUDA_ARCH_LIST.",
            )
            return


def _cuda_architectures() -> list[str]:
    """The architectures that the CUDA library was built for; none if they are not known."""
    try:
        from fused_losses import _C
    except ImportError:
        return []
    architectures: list[str] = _C.cuda_architectures
    return architectures


@contextmanager
def backend(name: BackendName) -> Iterator[None]:
    """Prefers a backend's kernels, where it has some, in this thread or asynchronous task.

    A backward prefers what its forward preferred, unless torch.compile has made both. All backends compute
    the same from the same saved tensors, so a backward after the end of the block may run on another's.

    Args:
        name: "compiled", the default; or "triton", which serves GPUs (and CPU tensors, if Triton interprets
            its kernels because the environment has TRITON_INTERPRET=1). Where only one has kernels, they
            serve anyway.

    Raises:
        ValueError: another name.
        RuntimeError: Triton is not installed.

    Example:
        >>> with fused_losses.backend("compiled"):
        ...     print(fused_losses.functional.mse_loss(torch.zeros(3), torch.ones(3)))
        tensor(1.)
    """
    global _who_prefer_triton
    if name not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, but it is {name!r}")
    if name == "triton" and not has_triton():
        raise RuntimeError("fused_losses: Triton is not installed")
    is_triton = name == "triton"
    with _lock:
        _who_prefer_triton += is_triton
    try:
        _register_or_remove_triton()
        with modes.prefer(name):
            yield
    finally:
        with _lock:
            _who_prefer_triton -= is_triton
        _register_or_remove_triton()


def has_triton() -> bool:
    """Whether Triton is installed; nothing is imported."""
    return find_spec("triton") is not None


def _register_or_remove_triton() -> None:
    """Gives Triton its dispatch key while someone may want its kernels, and takes it away afterwards."""
    global _triton_library
    device = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
    with _lock:
        wanted = has_triton() and _want_triton(device)
        if wanted and _triton_library is None:
            _triton_library = _register_triton()
        elif not wanted and _triton_library is not None:
            _triton_library._destroy()
            _triton_library = None
        devices.triton.clear()
        if _triton_library is not None:
            devices.triton[device] = "Triton" if device == "cuda" else "Triton, interpreted"


def _want_triton(device: str) -> bool:
    """Whether someone prefers Triton, or there is a GPU that nothing else serves."""
    if _who_prefer_triton or modes.PREFERRED == "triton":
        return True
    # Counting GPUs does not initialise CUDA.
    return "cuda" not in devices.compiled and device not in devices.compiled and torch.cuda.device_count() > 0


def _register_triton() -> torch.library.Library | None:
    try:
        from fused_losses import triton_kernels

        return triton_kernels.register(_where_preferred)
    except Exception as error:  # whatever a broken installation of Triton raises when it is imported
        _warn(
            f"Triton's kernels cannot be used ({type(error).__name__}: {error})",
            "Install the Triton that this torch brings.",
        )
        return None


def _where_preferred(operator: str, key: str, by_triton: Callable[..., Any]) -> Callable[..., Any]:
    """Triton's kernel of an operator where it is preferred, the compiled one elsewhere if there is one."""
    try:
        compiled = torch.library.get_kernel(f"fused_losses::{operator}", key)
    except RuntimeError:  # no kernel is registered for the key
        return lambda keys, *arguments: by_triton(*arguments)

    def run(keys: torch._C.DispatchKeySet, *arguments: Any) -> Any:
        if modes.backend.get() == "triton":
            return by_triton(*arguments)
        return compiled.call_boxed(keys, *arguments)

    return run

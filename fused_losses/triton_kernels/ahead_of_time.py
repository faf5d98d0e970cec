"""Compiling for a device that is not there: what launches would compile, without running it.

`compiling` shows the machine code of every kernel that a loss launches, and which calls share it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel, compile, make_backend
from triton.runtime.jit import JITFunction, compute_cache_key, create_function_from_signature

from fused_losses import devices, triton_kernels
from fused_losses.triton_kernels import launch


@dataclass(frozen=True)
class Launch:
    """A launch that was not made."""

    kernel: str
    programs: int
    constants: dict[str, Any]
    """What the caller had compiled in, options of the compiler included."""
    key: str
    """What the kernel was specialised for: launches of equal keys run the same machine code."""
    compiled: CompiledKernel


_compiled: dict[tuple[GPUTarget, str], CompiledKernel] = {}


def compile_for(
    target: GPUTarget, kernel: Any, arguments: dict[str, Any], constants: dict[str, Any]
) -> tuple[str, CompiledKernel]:
    """The key and the code of a launch, found as `JITFunction.run` does on the device itself.

    Arguments and constants are those of `launch.launch`.
    """
    if not isinstance(kernel, JITFunction):
        raise RuntimeError("fused_losses: with TRITON_INTERPRET, kernels are not compiled")
    backend = make_backend(target)
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    options = {
        **launch.compiler_options(constants, target.backend, target.warp_size),
        "debug": kernel.debug or knobs.runtime.debug,
        "instrumentation_mode": knobs.compilation.instrumentation_mode,
    }
    bound, specialization, rest = bind(**arguments, **options)
    key = kernel.cache_key + compute_cache_key({}, specialization, rest)
    if (target, key) not in _compiled:
        parsed, signature, constexprs, attributes = kernel._pack_args(
            backend, options, bound, specialization, rest
        )
        source = ASTSource(kernel, signature, constexprs, attributes)
        _compiled[target, key] = compile(source, target=target, options=parsed.__dict__)
    return key, _compiled[target, key]


@contextmanager
def compiling(target: GPUTarget) -> Iterator[list[Launch]]:
    """Collects the launches that losses of tensors on the meta device make inside, compiled for the target.

    These tensors have no elements, and none is needed: engines never look at one, since they would have to
    wait for the GPU.
    """
    launches: list[Launch] = []

    def compile_instead(
        kernel: Any, programs: int, arguments: dict[str, Any], constants: dict[str, Any]
    ) -> None:
        key, compiled = compile_for(target, kernel, arguments, constants)
        launches.append(Launch(kernel.__name__, programs, constants, key, compiled))

    before = launch.launch_hook
    launch.launch_hook = compile_instead
    devices.triton["meta"] = "Triton, compiled only"
    library = torch.library.Library("fused_losses", "IMPL", "Meta")
    for name, function in triton_kernels._implementations().items():
        library.impl(name, function, allow_override=True)
    try:
        yield launches
    finally:
        library._destroy()
        launch.launch_hook = before
        del devices.triton["meta"]

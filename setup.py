"""Builds the CPU libraries, one per instruction set from the same sources, and the module `_C`.

`FUSED_LOSSES_CPU=default,avx2,avx512` (or `all`) chooses the instruction sets; by default the host's alone.
`FUSED_LOSSES_SANITIZE=address,undefined` adds those sanitizers. `MAX_JOBS` and `DEBUG` are torch's own.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup

try:
    import torch
    from torch.utils.cpp_extension import BuildExtension, include_paths, library_paths
except ImportError:
    sys.exit(
        "fused_losses builds against the torch that is installed, and there is none here: install torch, "
        "then run `pip install --no-build-isolation .`"
    )

# The flags are those that torch's own compiler uses for its kernels of the same name.
ISA_FLAGS = {
    "default": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    # Scheduled for the servers that have it, which shortens long chains like sigmoid and log1p.
    "avx512": [
        "-mavx512f",
        "-mavx512dq",
        "-mavx512vl",
        "-mavx512bw",
        "-mfma",
        "-mf16c",
        "-mprefer-vector-width=512",
        "-mtune=icelake-server",
    ],
}
FLAGS = [
    "-std=c++20",
    "-g" if os.environ.get("DEBUG") == "1" else "-g0",
    "-O2",
    "-fvisibility=hidden",
    # No one reads errno or floating point traps here; both keep loops from being vectorised.
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wextra",
    "-Werror",
    # Vector arguments never cross a library's border, so that their passing depends on flags is no matter.
    "-Wno-psabi",
    # GCC 12 calls the placeholder operands inside its own AVX-512 headers uninitialised.
    "-Wno-uninitialized",
    "-Wno-maybe-uninitialized",
    # Clang does not know the last one.
    "-Wno-unknown-warning-option",
]


def cpu_libraries() -> list[str]:
    wanted = os.environ.get("FUSED_LOSSES_CPU", "")
    if not wanted:
        host = torch.backends.cpu.get_cpu_capability().lower()
        return [host if host in ISA_FLAGS else "default"]
    names = list(ISA_FLAGS) if wanted == "all" else wanted.split(",")
    unknown = set(names) - set(ISA_FLAGS)
    if unknown:
        sys.exit(f"FUSED_LOSSES_CPU: {', '.join(sorted(unknown))} is none of {', '.join(ISA_FLAGS)}")
    return names


def sanitizer_flags() -> list[str]:
    names = os.environ.get("FUSED_LOSSES_SANITIZE", "")
    # At -O2 the engines' many loops, each checked at each access, take longer to compile than to test.
    return [f"-fsanitize={names}", "-fno-omit-frame-pointer", "-g", "-O1"] if names else []


def cpu_extension(isa: str) -> Extension:
    return Extension(
        f"fused_losses._cpu_{isa}",
        sorted(str(path) for path in Path("csrc/cpu").glob("*.cpp")),
        depends=[str(path) for path in Path("csrc").rglob("*.h")],
        library_dirs=library_paths(),
        libraries=["torch_cpu"],
        # torch's headers are not ours to keep free of warnings.
        extra_compile_args=FLAGS
        + [f"-isystem{path}" for path in include_paths()]
        + ISA_FLAGS[isa]
        + sanitizer_flags(),
        extra_link_args=sanitizer_flags(),
    )


def module_extension(libraries: list[str]) -> Extension:
    import pybind11

    return Extension(
        "fused_losses._C",
        ["csrc/module.cpp"],
        include_dirs=[pybind11.get_include()],
        define_macros=[
            ("FUSED_LOSSES_CPU_LIBRARIES", f'"{",".join(libraries)}"'),
            ("FUSED_LOSSES_TORCH_VERSION", f'"{torch.__version__}"'),
        ],
        extra_compile_args=FLAGS,
    )


class Build(BuildExtension):
    """The same sources with other flags: one folder of objects, and one file name, for each library."""

    def build_extension(self, ext: Extension) -> None:
        keep, self.build_temp = self.build_temp, f"{self.build_temp}/{ext.name}"
        try:
            super().build_extension(ext)
        finally:
            self.build_temp = keep

    def get_ext_filename(self, fullname: str) -> str:
        # The CPU libraries know nothing of Python: no version of it in their names.
        if "._cpu_" in f".{fullname}" or fullname.startswith("_cpu_"):
            return f"{fullname.replace('.', '/')}.so"
        return super().get_ext_filename(fullname)


def main() -> None:
    if not shutil.which(os.environ.get("CXX", "c++")):
        sys.exit(
            "fused_losses needs a C++20 compiler (GCC 11 or Clang 14, or later), and finds none: "
            "install one or set CXX."
        )
    libraries = cpu_libraries()
    print(f"fused_losses: torch {torch.__version__}, CPU libraries: {', '.join(libraries)}")
    setup(
        ext_modules=[*map(cpu_extension, libraries), module_extension(libraries)],
        cmdclass={"build_ext": Build.with_options(no_python_abi_suffix=False)},
    )


main()

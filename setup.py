"""Builds the CPU libraries, one per instruction set from the same sources, the CUDA library, and `_C`.

`FUSED_LOSSES_CPU=default,avx2,avx512` (or `all`) chooses the instruction sets; by default the host's alone.
`FUSED_LOSSES_CUDA=1` (or torch's `FORCE_CUDA=1`) builds the CUDA library where there is no GPU, and
`FUSED_LOSSES_CUDA=0` leaves it out where there is one; `TORCH_CUDA_ARCH_LIST` chooses its architectures.
`FUSED_LOSSES_SANITIZE=address,undefined` adds those sanitizers. `MAX_JOBS` and `DEBUG` are torch's own.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

REQUIRED = {"torch": "torch>=2.11", "setuptools": "setuptools>=77", "pybind11": "pybind11>=2.13"}
"""What is imported here, and must be installed before."""

missing = [requirement for name, requirement in REQUIRED.items() if find_spec(name) is None]
if __name__ == "__main__" and missing:
    sys.exit(
        f"fused_losses is built by what is installed, and {' and '.join(missing)} is not: run "
        f"`pip install {shlex.join(missing)}`, then `pip install --no-build-isolation .`"
    )

from setuptools import Extension, setup

PACKAGES = sorted((Path(sysconfig.get_paths()["purelib"]) / "nvidia").glob("cu[0-9]*"))
"""NVIDIA's packages for Python: the runtime, on which torch depends; by `cuda-build`, the compiler."""


def find_cuda() -> Path | None:
    """A CUDA that has a compiler: where the user says, the machine's, or that of the packages."""
    home = os.environ.get("CUDA_HOME")
    places = [f"{home}/bin/nvcc"] if home else [shutil.which("nvcc"), "/usr/local/cuda/bin/nvcc"]
    for nvcc in [*places, *(f"{folder}/bin/nvcc" for folder in PACKAGES)]:
        if nvcc and Path(nvcc).exists():
            # nvcc itself is asked where it is, since the path may be a link or a script.
            said = subprocess.run(
                [nvcc, "--dryrun", "-E", "-x", "cu", os.devnull], capture_output=True, text=True
            )
            tops = [line.partition("TOP=")[2] for line in said.stderr.splitlines() if "TOP=" in line]
            return Path(tops[0]).resolve() if tops else Path(nvcc).parents[1]
    return None


CUDA = find_cuda()
if CUDA:
    os.environ["CUDA_HOME"] = str(CUDA)  # torch looks when it is imported
# Libraries use torch's C interface, for which it does not matter what compiler torch was built by.
os.environ.setdefault("TORCH_DONT_CHECK_COMPILER_ABI", "1")

import torch
from torch.utils.cpp_extension import BuildExtension, include_paths, library_paths

# The stable ABI that libraries are compiled for, which torch 2.11 and all later versions have.
STABLE_ABI = ("TORCH_TARGET_VERSION", "0x020b000000000000ULL")

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
    # Nothing here reads errno or floating point traps, which keep loops from being vectorised.
    "-fno-math-errno",
    "-fno-trapping-math",
    "-Wall",
    "-Wextra",
    "-Werror",
    # How vectors are passed depends on flags; but no function of a library's interface takes one.
    "-Wno-psabi",
    # GCC 12 calls the placeholder operands inside its own AVX-512 headers uninitialised.
    "-Wno-uninitialized",
    "-Wno-maybe-uninitialized",
    # Clang does not know -Wno-maybe-uninitialized.
    "-Wno-unknown-warning-option",
]
# Ampere, Hopper and Blackwell; for what comes after them, the driver compiles the PTX.
CUDA_ARCHITECTURES = "8.0;9.0;10.0+PTX"

NVCC_FLAGS = [
    "-std=c++20",
    "-O3",
    "-Werror",
    "all-warnings",
    "--expt-relaxed-constexpr",
    "-Xcompiler",
    "-fvisibility=hidden",
    # Products and sums contract only where a formula says multiply_add: what is computed twice must be the
    # same bits.
    "-fmad=false",
]


def say(what: str) -> None:
    print(f"fused_losses: {what}", flush=True)


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
    # At -O2, the engines' many loops, with a check at each access, take longer to compile than to test.
    return [f"-fsanitize={names}", "-fno-omit-frame-pointer", "-g", "-O1"] if names else []


def cpu_extension(isa: str) -> Extension:
    return Extension(
        f"fused_losses._cpu_{isa}",
        sorted(str(path) for path in Path("csrc/cpu").glob("*.cpp")),
        depends=[str(path) for path in Path("csrc").rglob("*.h")],
        define_macros=[STABLE_ABI],
        library_dirs=library_paths(),
        libraries=["torch_cpu"],
        # As system headers, those of torch give no warnings.
        extra_compile_args=FLAGS
        + [f"-isystem{path}" for path in include_paths()]
        + ISA_FLAGS[isa]
        + sanitizer_flags(),
        extra_link_args=sanitizer_flags(),
    )


def cuda_architectures() -> list[str]:
    """What the CUDA library is built for; nothing, if it is not built, and why is printed."""
    asked = os.environ.get("FUSED_LOSSES_CUDA") or os.environ.get("FORCE_CUDA")
    why_not = None
    if asked == "0":
        why_not = "it was not to be built"
    elif torch.version.cuda is None:
        why_not = f"torch {torch.__version__} has no CUDA"
    elif CUDA is None:
        why_not = "there is no nvcc; `pip install fused_losses[cuda-build]` brings one"
    elif asked != "1" and not torch.cuda.is_available():
        why_not = "this machine has no GPU; FUSED_LOSSES_CUDA=1 builds it all the same"
    if why_not and asked == "1":
        sys.exit(f"fused_losses: the CUDA library cannot be built, since {why_not}")
    if why_not:
        say(f"no CUDA library, since {why_not}")
        return []
    wanted = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", CUDA_ARCHITECTURES)
    return wanted.replace(" ", ";").split(";")


def cuda_extension() -> Extension:
    sources = [*Path("csrc/cuda").glob("*.cu"), *Path("csrc/cuda").glob("*.cpp")]
    # The runtime that torch loads comes first. In NVIDIA's packages, a version is part of its file's name.
    folders = [folder / lib for folder in [*PACKAGES, CUDA] for lib in ("lib", "lib64")]
    runtime = next((path for folder in folders for path in sorted(folder.glob("libcudart.so*"))), None)
    if runtime is None:
        sys.exit(f"fused_losses: the CUDA in {CUDA} has no libcudart.so")
    # The option and the path are two arguments, since nvcc does not take both in one.
    systems = [word for path in [*include_paths(), CUDA / "include"] for word in ("-isystem", str(path))]
    return Extension(
        "fused_losses._cuda",
        sorted(map(str, sources)),
        depends=[str(path) for path in [*Path("csrc").rglob("*.h"), *Path("csrc").rglob("*.cuh")]],
        define_macros=[STABLE_ABI],
        library_dirs=library_paths(),
        libraries=["torch_cpu", "torch_cuda"],
        # USE_CUDA makes torch declare its C interface to streams and guards.
        extra_compile_args={"cxx": [*FLAGS, "-DUSE_CUDA", *systems], "nvcc": [*NVCC_FLAGS, *systems]},
        extra_link_args=[str(runtime)],
    )


def module_extension(libraries: list[str], architectures: list[str]) -> Extension:
    import pybind11

    return Extension(
        "fused_losses._C",
        ["csrc/module.cpp"],
        include_dirs=[pybind11.get_include()],
        define_macros=[
            ("FUSED_LOSSES_CPU_LIBRARIES", f'"{",".join(libraries)}"'),
            ("FUSED_LOSSES_CUDA_ARCHITECTURES", f'"{",".join(architectures)}"'),
            ("FUSED_LOSSES_TORCH_VERSION", f'"{torch.__version__}"'),
        ],
        extra_compile_args=FLAGS,
    )


# Roughly, on a core of a server of 2023; MAX_JOBS files are compiled at a time.
TIMES = {f"fused_losses._cpu_{isa}": ", about 4 minutes of a core" for isa in ISA_FLAGS}
TIMES["fused_losses._cuda"] = ", about 6 minutes of a core for each architecture"


class Build(BuildExtension):
    """The same sources with other flags: one folder of objects, and one file name, for each library."""

    def build_extension(self, ext: Extension) -> None:
        say(f"compiling {len(ext.sources)} files of {ext.name}{TIMES.get(ext.name, '')}")
        # An editable build has a new temporary folder each time, and would compile all objects again.
        objects = "build/objects" if self.editable_mode else self.build_temp
        keep, self.build_temp = self.build_temp, f"{objects}/{ext.name}"
        try:
            super().build_extension(ext)
        finally:
            self.build_temp = keep

    def get_ext_filename(self, fullname: str) -> str:
        # These libraries know nothing of Python: no version of it in their names.
        if fullname.rpartition(".")[2].startswith(("_cpu_", "_cuda")):
            return f"{fullname.replace('.', '/')}.so"
        return super().get_ext_filename(fullname)


def find_compiler() -> None:
    """Looks for the C++ compiler, and makes a script of one of several words, which torch would not run."""
    words = shlex.split(os.environ.get("CXX") or "c++")
    if not shutil.which(words[0]):
        sys.exit(
            "fused_losses needs a C++20 compiler (GCC 11 or Clang 14, or later), and finds none: "
            "install one or set CXX."
        )
    if len(words) > 1:  # such as "ccache g++"
        script = Path("build/cxx").absolute()
        script.parent.mkdir(exist_ok=True)
        script.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
        script.chmod(0o755)
        os.environ |= {"CXX": str(script), "TORCH_NO_COMPILER_WRAPPER": "1"}


def main() -> None:
    find_compiler()
    libraries, architectures = cpu_libraries(), cuda_architectures()
    say(f"torch {torch.__version__}, CPU libraries: {', '.join(libraries)}")
    extensions = [*map(cpu_extension, libraries), module_extension(libraries, architectures)]
    if architectures:
        say(f"CUDA library for {', '.join(architectures)}, by the compiler in {CUDA}")
        extensions.append(cuda_extension())
    setup(
        ext_modules=extensions,
        cmdclass={"build_ext": Build.with_options(no_python_abi_suffix=False)},
    )


if __name__ == "__main__":
    main()

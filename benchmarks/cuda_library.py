"""Builds the CUDA library for the reports on machine code, and finds kernels in it.

    python cuda_library.py      builds what is older than its sources, or says that there is no nvcc

Flags are those of setup.py. By default, it is built for sm_90 alone; `TORCH_CUDA_ARCH_LIST` chooses other
architectures.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from disassembly import TOOLS, Kernel, cubin, resources

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "gpu-report"
LIBRARY = FOLDER / "fused_losses" / "_cuda.so"
ON_CPU = ROOT / "build" / "cuda_on_cpu" / "cuda_on_cpu.so"
"""The same sources for the CPU, which are asked what they would launch."""
ARCHITECTURES = "TORCH_CUDA_ARCH_LIST"


def build() -> bool:
    """Builds both libraries, and returns whether there is a compiler to do so."""
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault(ARCHITECTURES, "9.0")
    from setuptools import Distribution

    import setup

    if setup.CUDA is None:
        return False
    os.chdir(ROOT)
    print(
        f"Building what is not up to date of {LIBRARY.relative_to(ROOT)}, for {os.environ[ARCHITECTURES]}",
        flush=True,
    )
    command = setup.Build.with_options(no_python_abi_suffix=False)
    extensions = [setup.cuda_extension()]
    distribution = Distribution({"ext_modules": extensions, "cmdclass": {"build_ext": command}})
    building = distribution.get_command_obj("build_ext")
    building.build_lib, building.build_temp = str(FOLDER), str(FOLDER / "objects")
    distribution.run_command("build_ext")
    print(
        f"Building what is not up to date of {ON_CPU.relative_to(ROOT)}, about 2 minutes of a core",
        flush=True,
    )
    script = ROOT / "tests" / "backends" / "cuda_on_cpu" / "build.py"
    subprocess.run([sys.executable, script, ON_CPU.parent], check=True)
    return True


def extract(folder: Path, architecture: str | None = None) -> list[Path]:
    """The library's machine code for an architecture, or for all, as files in a folder."""
    chosen = ["-arch", architecture] if architecture else []
    subprocess.run(
        [TOOLS / "cuobjdump", *chosen, "-xelf", "all", LIBRARY], cwd=folder, check=True, capture_output=True
    )
    return sorted(folder.glob("*.cubin"))


def kernels(names: Iterable[str], architecture: str, processes: int) -> dict[str, Kernel]:
    """The kernels of these names, which a compiler for the CPU has given them.

    Raises:
        ValueError: Two different kernels have one name.
        KeyError: The library lacks one.
    """
    wanted = dict(zip(names, demangled(names), strict=True))
    found: dict[str, Kernel] = {}
    with TemporaryDirectory() as folder, ProcessPoolExecutor(processes) as pool:
        files = extract(Path(folder), architecture)
        for each in pool.map(_read, files, [set(wanted.values())] * len(files)):
            for name, kernel in each.items():
                if found.setdefault(name, kernel).size != kernel.size:
                    raise ValueError(f"{name} is there twice")
    return {mangled: found[name] for mangled, name in wanted.items()}


def _read(path: Path, wanted: set[str]) -> dict[str, Kernel]:
    """The kernels of a file that are wanted, by their names in the sources."""
    mangled = list(resources(path))
    names = dict(zip(mangled, demangled(mangled), strict=True))
    found = cubin(path, {each for each, name in names.items() if name in wanted})
    return {names[each]: kernel for each, kernel in found.items()}


def demangled(names: Iterable[str]) -> list[str]:
    """Names as sources have them: compilers mangle an anonymous namespace in ways of their own."""
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def short(name: str) -> str:
    """A demangled name without what all kernels share."""
    bare = re.sub(r"\(\w+(::\w+)*\)(?=-?\d|true|false)", "", name)  # what numbers are cast to
    return re.sub(r"\(anonymous namespace\)::|fused_losses::|c10::|^void |\(.*$", "", bare)


if __name__ == "__main__":
    print("The CUDA library is up to date." if build() else "There is no nvcc, and so no CUDA library.")

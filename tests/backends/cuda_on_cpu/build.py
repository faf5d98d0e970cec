"""Compiles the CUDA sources as C++, to run on CPU tensors: `python build.py FOLDER [SANITIZER]`."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch.utils.cpp_extension import include_paths, library_paths

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT))
from setup import STABLE_ABI  # noqa: E402

CUDA = ROOT / "csrc/cuda"
SOURCES = [*sorted(CUDA.glob("*.cu")), *sorted(CUDA.glob("*.cpp"))]
HEADERS = [*(ROOT / "csrc").rglob("*.h"), *CUDA.glob("*.cuh"), *Path(__file__).parent.glob("*.h")]
FLAGS = [
    "-std=c++20",
    "-O1",
    "-fPIC",
    "-fvisibility=hidden",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-Wno-unknown-pragmas",
    "-DFUSED_LOSSES_CUDA_ON_CPU",
    f"-D{'='.join(STABLE_ABI)}",
    f"-I{Path(__file__).parent}",
    *(f"-isystem{path}" for path in include_paths()),
]


def build(folder: Path, sanitizer: str = "") -> Path:
    """Makes the library in a folder, compiles again where sources are newer, and returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    flags = [*FLAGS, *(["-g", f"-fsanitize={sanitizer}"] if sanitizer else [])]
    newest = max(path.stat().st_mtime for path in HEADERS)

    def compile_one(source: Path) -> Path:
        compiled = folder / f"{source.name}.o"
        if not compiled.exists() or compiled.stat().st_mtime < max(newest, source.stat().st_mtime):
            _run("g++", *flags, "-x", "c++", "-c", source, "-o", compiled)
        return compiled

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, SOURCES))
    library = folder / "cuda_on_cpu.so"
    paths = [f"-L{path}" for path in library_paths()]
    _run("g++", "-shared", *flags, *objects, *paths, "-ltorch_cpu", "-o", library)
    return library


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)


if __name__ == "__main__":
    print(build(Path(sys.argv[1]).absolute(), *sys.argv[2:]))

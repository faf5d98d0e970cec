"""The functions of torch's C interface that a library has, or needs: `nm` reads them.

The folder `torch_symbols` lists what torch 2.11 has, the oldest that the package runs with. In an environment
with that torch, built for CUDA, this writes it:

    python tests/package/torch_symbols.py
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

FOLDER = Path(__file__).parent / "torch_symbols"
LIBRARIES = ("libtorch_cpu", "libtorch_cuda")
"""Those of torch that have its C interface; all but the last are in a torch without CUDA, too."""

C_INTERFACE = re.compile(r"(torch|aoti_torch)_\w+")


def has_nm() -> bool:
    return shutil.which("nm") is not None


def symbols(library: Path, which: str) -> list[str]:
    """The names in a library's dynamic table, without versions; `which` is "defined" or "undefined"."""
    command = ["nm", "--dynamic", f"--{which}-only", "--format=posix", library]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return sorted({line.split()[0].partition("@")[0] for line in lines})


def oldest(library: str) -> set[str]:
    """Of torch 2.11's C interface, what `library` has."""
    lines = (FOLDER / f"{library}.txt").read_text().splitlines()
    return {line for line in lines if not line.startswith("#")}


def main() -> None:
    import torch

    if not torch.__version__.startswith("2.11.") or torch.version.cuda is None:
        raise SystemExit(f"this needs torch 2.11 with CUDA, and torch is {torch.__version__}")
    for library in LIBRARIES:
        names = symbols(Path(torch.__file__).parent / "lib" / f"{library}.so", "defined")
        names = [name for name in names if C_INTERFACE.fullmatch(name)]
        title = f"# The C interface in {library}.so of torch {torch.__version__}, by {Path(__file__).name}."
        (FOLDER / f"{library}.txt").write_text("\n".join([title, *names]) + "\n")
        print(f"{library}: {len(names)} functions")


if __name__ == "__main__":
    main()

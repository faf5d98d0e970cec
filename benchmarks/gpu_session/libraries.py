"""The compiled libraries of a session: those of a folder that was brought along, or built on the spot.

    python libraries.py pack FOLDER           builds them for machines with this version of Python
    python libraries.py place FOLDER DEVICE   puts them into the package, and runs a loss on "cuda" or "cpu"

They fit if a digest of their sources, which is in the folder, is that of the sources here.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "fused_losses"

CHECK = """
import sys, torch, fused_losses._C, fused_losses.functional as L
from fused_losses import backends
device = sys.argv[1]
logits = torch.randn(4, 7, device=device, requires_grad=True)
L.cross_entropy(logits, torch.arange(4, device=device)).backward()
assert logits.grad.isfinite().all()
served = backends.devices.get(device, "torch's own functions")
print(f"{device} is served by {served}")
sys.exit(not served.startswith(("C++", backends.CUDA)))
"""


def sources() -> list[Path]:
    """In an order that stays the same."""
    return [*sorted(path for path in (ROOT / "csrc").rglob("*") if path.is_file()), ROOT / "setup.py"]


def digest() -> str:
    """A hash of the sources, with their names."""
    of = hashlib.sha256()
    for path in sources():
        of.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return of.hexdigest()


def are_newer_than_the_sources(libraries: list[Path]) -> bool:
    """False of no libraries."""
    built = min((path.stat().st_mtime for path in libraries), default=0.0)
    return built > max(path.stat().st_mtime for path in sources())


def build(*options: str) -> None:
    """With this torch."""
    subprocess.run([sys.executable, "setup.py", "build_ext", *options], cwd=ROOT, check=True)


def pack(folder: Path) -> None:
    """Those that the environment asks for, in the terms of setup.py."""
    shutil.rmtree(folder, ignore_errors=True)
    build("--build-lib", str(folder), "--build-temp", str(ROOT / "build" / "gpu-session-kit"))
    subprocess.run(["strip", "--strip-unneeded", *folder.glob("fused_losses/*.so")], check=True)
    (folder / "digest").write_text(digest())


def runs(device: str) -> bool:
    """Whether compiled kernels serve the device, and do what they should."""
    return subprocess.run([sys.executable, "-c", CHECK, device], cwd=ROOT).returncode == 0


def place(folder: Path, device: str) -> bool:
    """Whether there are libraries that run now."""
    brought = list(folder.glob("fused_losses/*.so"))
    if brought and (folder / "digest").read_text() == digest():
        for library in brought:
            shutil.copy(library, PACKAGE)
        if runs(device):
            print("libraries: brought along")
            return True
        for library in brought:
            (PACKAGE / library.name).unlink()
    if are_newer_than_the_sources(list(PACKAGE.glob("*.so"))) and runs(device):
        print("libraries: were here, newer than their sources")
        return True
    print("libraries: built here; those brought along do not fit" if brought else "libraries: built here")
    if device == "cuda":  # and for no other GPU, which would take as long again
        import torch

        major, minor = torch.cuda.get_device_capability()
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", f"{major}.{minor}")
    build("--inplace")
    return runs(device)


if __name__ == "__main__":
    verb, where, *rest = sys.argv[1:]
    if verb == "pack":
        pack(Path(where))
    else:
        sys.exit(not place(Path(where), *rest))

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

DO_NOT_LOAD = "do not load for this Python, torch or device"
FAIL = "load, but a loss fails"
RUN = "run"

LOADED = 3
"""The exit status where libraries load, but a loss fails. Python's own, after an exception, is 1."""
STATUS = {RUN: 0, DO_NOT_LOAD: 1, FAIL: LOADED}

# The package warns of a library that does not load; the device is used before it is asked who serves it, as a
# library learns only then that it was built for other GPUs.
CHECK = f"""
import logging, sys
logging.basicConfig()
import torch, fused_losses._C, fused_losses.functional as L
from fused_losses import backends, devices
device = sys.argv[1]
labels = torch.arange(4, device=device)
served = devices.kernels_for(device) or "torch's own functions"
print(device, "is served by", served, file=sys.stderr)
if not served.startswith(("C++", devices.CUDA)):
    sys.exit(1)
print({FAIL!r}, flush=True)  # unless what comes next proves otherwise
logits = torch.randn(4, 7, device=device, requires_grad=True)
L.cross_entropy(logits, labels).backward()
assert logits.grad.isfinite().all()
print({RUN!r}, flush=True)
"""

LONGEST_CHECK = 90
"""Seconds: importing torch can take 30 at first, and a kernel that hangs must leave some to others."""


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


def tried(device: str) -> str:
    """Whether compiled kernels serve the device, and do what they should: RUN, FAIL or DO_NOT_LOAD."""
    command = ["timeout", "--foreground", "--signal=KILL", str(LONGEST_CHECK)]
    command += [sys.executable, "-c", CHECK, device]
    said = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    return next((found for found in (RUN, FAIL) if found in said), DO_NOT_LOAD)


def place(folder: Path, device: str) -> str:
    """What the package's libraries then do. Those that load and fail would fail again if rebuilt."""
    brought = list(folder.glob("fused_losses/*.so"))
    if brought and (folder / "digest").read_text() == digest():
        for library in brought:
            shutil.copy(library, PACKAGE)
        found = say("those brought along", tried(device))
        if found != DO_NOT_LOAD:
            return found
        for library in brought:
            (PACKAGE / library.name).unlink()
    elif brought:
        say("those brought along", "are of other sources")
    if are_newer_than_the_sources(list(PACKAGE.glob("*.so"))):
        found = say("those here, newer than their sources,", tried(device))
        if found != DO_NOT_LOAD:
            return found
    if device == "cuda":  # and for no other GPU, which would take as long again
        import torch

        major, minor = torch.cuda.get_device_capability()
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", f"{major}.{minor}")
    build("--inplace")
    return say("those built here", tried(device))


def say(which: str, found: str) -> str:
    print(f"libraries: {which} {found}", flush=True)
    return found


if __name__ == "__main__":
    verb, where, *rest = sys.argv[1:]
    if verb == "pack":
        pack(Path(where))
    else:
        sys.exit(STATUS[place(Path(where), *rest)])

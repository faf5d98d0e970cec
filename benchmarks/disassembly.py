"""Reads kernels out of NVIDIA's machine code (cubin) and AMD's assembly, by tools that come with Triton."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from machine_code import Code, Instruction

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass
class Kernel:
    """Machine code, and what it takes of a processor."""

    code: Code
    registers: int
    """Of each thread."""
    local_bytes: int
    """The stack of each thread: registers that did not suffice, and arrays whose indices are not constant."""
    shared_bytes: int
    """Of each block, but for what a launch adds."""

    @property
    def size(self) -> int:
        """How many instructions it has."""
        return len(self.code.instructions)


def compiled_by_triton(compiled: Any) -> Kernel:
    """Reads a `CompiledKernel`."""
    metadata = compiled.metadata
    if metadata.target.backend == "cuda":
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            (kernel,) = cubin(Path(file.name)).values()
    else:
        kernel = amd(compiled.asm["amdgcn"], metadata.name)
    kernel.shared_bytes = metadata.shared
    return kernel


def resources(path: Path) -> dict[str, dict[str, int]]:
    """What the kernels of a file of machine code use ("REG": registers, ...), by their mangled names."""
    found, name = {}, ""
    for line in _run("cuobjdump", "-res-usage", str(path)).splitlines():
        if match := re.match(r"\s*Function (\S+):", line):
            name = match[1]
        elif "REG:" in line:
            found[name] = {key: int(n) for key, n in re.findall(r"([A-Z]+):(\d+)", line)}
    return found


def cubin(path: Path, names: Container[str] | None = None) -> dict[str, Kernel]:
    """The kernels of a file of machine code, or those of these mangled names."""
    used = {name: usage for name, usage in resources(path).items() if names is None or name in names}
    codes = sass(_run("nvdisasm", "-c", str(path)), used) if used else {}
    return {
        name: Kernel(codes[name], usage["REG"], usage["STACK"] + usage["LOCAL"], usage.get("SHARED", 0))
        for name, usage in used.items()
    }


def sass(text: str, names: Container[str]) -> dict[str, Code]:
    """The functions of these names in what `nvdisasm -c` has written."""
    parts = re.split(r"^\.text\.(\S+):$", text, flags=re.MULTILINE)[1:]
    return {
        name: _function(body) for name, body in zip(parts[::2], parts[1::2], strict=True) if name in names
    }


def _function(text: str) -> Code:
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    # The label at which the threads of a barrier register meet again.
    meeting: dict[str, str] = {}
    for line in text.splitlines():
        if found := re.match(r"(\.L_x_\d+|\$\S+):", line):
            labels[found[1]] = len(instructions)
        elif found := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?)\s*;", line):
            word = found[1]
            named = tuple(re.findall(r"\.L_x_\d+", line[line.index(word) :]))
            targets: tuple[str, ...] = ()
            falls = True
            bare = re.sub(r"^@!?U?P\w+\s+", "", word)
            if bare.startswith("BSSY") and named:
                meeting[bare.split()[1].rstrip(",")] = named[0]
            elif bare.startswith("BSYNC"):
                label = meeting.get(bare.split()[-1])
                targets, falls = ((label,), word != bare) if label else ((), True)
            elif bare.startswith(("BRA", "BRX", "JMP")):
                targets = named
                falls = word != bare or bool(re.search(r"\bU?P\d", bare)) or bare.startswith("BRA.DIV")
            elif bare.startswith("CALL.REL") and named:
                # Functions have names; a label is jumped to, and nothing returns.
                targets, falls = named, word != bare
            elif bare.startswith(("EXIT", "RET", "CALL.ABS")):
                # What is called in another file reports a failed assertion, and does not return.
                falls = word != bare
            instructions.append(Instruction(word, targets, falls))
    return Code(instructions, labels)


def amd(text: str, name: str) -> Kernel:
    """A kernel in AMD's assembly."""
    numbers = {name: int(n) for name, n in re.findall(r"^\s*\.(\w+):\s+(\d+)\s*$", text, re.MULTILINE)}
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    # Before the kernel, there may be functions that it calls to report a failed assertion.
    for line in text[text.index(f"\n{name}:") :].splitlines():
        word = line.split(";")[0].strip()
        if found := re.match(r"(\.LBB\w+):", word):
            labels[found[1]] = len(instructions)
        elif re.match(r"[a-z]+_\w+", word) and line[:1].isspace():
            found = re.match(r"s_c?branch\w*\s+(\S+)", word)
            falls = not word.startswith(("s_branch", "s_endpgm", "s_setpc"))
            instructions.append(Instruction(word, (found[1],) if found else (), falls))
        elif word.startswith(".Lfunc_end"):
            break
    return Kernel(Code(instructions, labels), numbers["vgpr_count"], numbers["private_segment_fixed_size"], 0)


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / tool, *arguments], check=True, capture_output=True, text=True).stdout

"""What a compiled Triton kernel is made of: its loops, their instructions, and how wide they access memory.

Everything is read off the disassembly of NVIDIA's machine code, or of AMD's assembly; nothing is run.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"

BESIDES = ("reduce.py", "labels.py")
"""Sources whose loops are not over elements: they add up the sums of programs, and the weights of labels."""

WIDE = 128
"""Bits of the widest accesses to memory that all GPUs have; Blackwell has wider ones, too."""

FEW_ACCESSES = 4
"""How many loads, or stores, of a loop may be narrow: they may be those of one number for each row."""

# An access to global memory and its width: in bits if there is a number, else a type of at most 32 bits.
_SASS_ACCESS = re.compile(r"\b(LDG|STG)\.E(?:\.\w+)*")
_SASS_WIDTH = re.compile(r"\.(?:[US]?(8|16)|(64|128|256))\b")
_AMD_ACCESS = re.compile(r"\b(?:global|buffer)_(load|store)_(\w+)")
_AMD_WIDTHS = {
    "dword": 32,
    "dwordx2": 64,
    "dwordx3": 96,
    "dwordx4": 128,
    "ushort": 16,
    "short": 16,
    "byte": 8,
}


@dataclass
class Instruction:
    """One machine instruction, as text of the disassembly or of the assembly."""

    text: str
    source: str
    """The name of the Python file that it comes from."""
    target: str | None = None
    """The label it may jump to."""
    falls_through: bool = True

    @property
    def access(self) -> tuple[str, int] | None:
        """("load" or "store", bits), if the instruction accesses global memory."""
        if found := _SASS_ACCESS.search(self.text):
            widths = _SASS_WIDTH.search(found[0])
            bits = int(widths[1] or widths[2]) if widths else 32
            return ("load" if found[1] == "LDG" else "store"), bits
        if found := _AMD_ACCESS.search(self.text):
            kind = found[2].split("_d16")[0]
            bits = next((w for name, w in _AMD_WIDTHS.items() if kind in (name, f"u{name}", f"s{name}")), 32)
            return found[1], bits
        return None

    @property
    def is_exponential(self) -> bool:
        """Whether it computes 2^x, of which all exponentials are made."""
        return "MUFU.EX2" in self.text or "v_exp_f32" in self.text

    @property
    def is_special(self) -> bool:
        """Whether it is one of the slowest unit's: reciprocals, roots, logarithms and exponentials."""
        return "MUFU" in self.text or bool(re.search(r"\bv_(exp|log|rcp|rsq|sqrt)_f", self.text))


@dataclass
class Code:
    """A kernel's instructions in order."""

    instructions: list[Instruction]
    labels: dict[str, int]
    """Which instruction a label stands before."""

    @cached_property
    def loops(self) -> list[frozenset[int]]:
        """The natural loops: where a jump leads back to an instruction that dominates it, what is between.

        Those of rare cases, which lie elsewhere but lead back, belong to the loop as well.
        """
        return list(_natural_loops(self._successors()).values())

    def _successors(self) -> list[list[int]]:
        count = len(self.instructions)
        found = []
        for i, instruction in enumerate(self.instructions):
            next_ones = [i + 1] if instruction.falls_through and i + 1 < count else []
            if instruction.target in self.labels and self.labels[instruction.target] < count:
                next_ones.append(self.labels[instruction.target])
            found.append(next_ones)
        return found

    def accesses(self, where: Iterable[int]) -> list[tuple[str, int]]:
        """The accesses to global memory for elements, as ("load" or "store", bits)."""
        found = [self.instructions[i] for i in where]
        return [each.access for each in found if each.access and each.source not in BESIDES]

    @cached_property
    def hot_loops(self) -> list[frozenset[int]]:
        """The innermost loops that load or store elements: of a kernel with two passes over rows, two."""
        touching = [loop for loop in self.loops if self.accesses(loop)]
        return [loop for loop in touching if not any(other < loop for other in touching)]


def _natural_loops(successors: Sequence[Sequence[int]]) -> dict[int, frozenset[int]]:
    predecessors: list[list[int]] = [[] for _ in successors]
    for i, next_ones in enumerate(successors):
        for j in next_ones:
            predecessors[j].append(i)
    dominators = _dominators(successors, predecessors)
    loops: dict[int, frozenset[int]] = {}
    for i, next_ones in enumerate(successors):
        for head in next_ones:
            # A jump to itself is the padding after the kernel's end.
            if head == i or not dominators[i] >> head & 1:
                continue
            body, waiting = {head}, [i]
            while waiting:
                at = waiting.pop()
                if at not in body:
                    body.add(at)
                    waiting += predecessors[at]
            loops[head] = loops.get(head, frozenset()) | body
    return loops


def _dominators(successors: Sequence[Sequence[int]], predecessors: Sequence[Sequence[int]]) -> list[int]:
    """For each instruction, the set of those on every way to it, as bits; unreachable ones mean nothing."""
    order, seen = [], {0}
    stack = [(0, iter(successors[0]))]
    while stack:
        at, remaining = stack[-1]
        following = next((j for j in remaining if j not in seen), None)
        if following is None:
            order.append(at)
            stack.pop()
        else:
            seen.add(following)
            stack.append((following, iter(successors[following])))
    everything = (1 << len(successors)) - 1
    found = [everything if i in seen else 0 for i in range(len(successors))]
    found[0] = 1
    changed = True
    while changed:
        changed = False
        for i in reversed(order[:-1]):
            common = everything
            for j in predecessors[i]:
                if j in seen:
                    common &= found[j]
            common |= 1 << i
            changed |= common != found[i]
            found[i] = common
    return found


@dataclass
class Resources:
    """What a kernel takes of a processor: for each thread, but for `shared`, which is for a program."""

    registers: int
    spilled: int
    """Bytes of the stack: registers that did not suffice."""
    shared: int
    """Bytes, for each program."""


@dataclass
class Report:
    """A compiled kernel, and what follows from its machine code."""

    resources: Resources
    code: Code
    elements: int
    """Elements of a tile."""
    threads: int
    """Threads of a program."""
    hot: list[frozenset[int]] = field(init=False)
    """The instructions of each hot loop, or all instructions if there is no loop."""

    def __post_init__(self) -> None:
        self.hot = self.code.hot_loops or [frozenset(range(len(self.code.instructions)))]

    def per_element(self, counted: Any = lambda _: True) -> float:
        """Instructions of the hot loops, executed by all threads, for each element of the tile.

        Every instruction of a loop counts once, also those of rare cases; a loop inside that loads and stores
        nothing counts as one turn. Too many instructions count where the compiler has unrolled a loop.
        Without any loop, all instructions of the kernel count.
        """
        count = sum(counted(self.code.instructions[i]) for loop in self.hot for i in loop)
        return count * self.threads / self.elements

    def widths(self, kind: str) -> str:
        """How many accesses of the hot loops have so many bits, such as "4x128 1x64".

        Args:
            kind: "load" or "store".
        """
        found = Counter(bits for loop in self.hot for each, bits in self.code.accesses(loop) if each == kind)
        return " ".join(f"{count}x{bits}" for bits, count in sorted(found.items(), reverse=True))

    @property
    def problems(self) -> list[str]:
        """What is wrong with the kernel, in words; empty if nothing is."""
        found = ["spills"] if self.resources.spilled else []
        widths = set()
        for loop in self.code.hot_loops:
            for kind in ("load", "store"):
                bits = [bits for each, bits in self.code.accesses(loop) if each == kind]
                if len(bits) > FEW_ACCESSES and max(bits) < WIDE:
                    widths.add((kind, max(bits)))
        found += [f"{kind}s of {bits} bits at the most" for kind, bits in sorted(widths)]
        if self.code.hot_loops and not any(
            bits >= WIDE for loop in self.hot for _, bits in self.code.accesses(loop)
        ):
            found.append(f"no access of {WIDE} bits")
        return found


def report_of(compiled: Any, elements: int) -> Report:
    """The report of a `CompiledKernel` of Triton, whose tiles have so many elements."""
    metadata = compiled.metadata
    threads = metadata.num_warps * metadata.target.warp_size
    if metadata.target.backend == "cuda":
        resources, code = _read_cubin(compiled.asm["cubin"])
    else:
        resources, code = _read_amd(compiled.asm["amdgcn"], metadata.name)
    resources.shared = metadata.shared
    return Report(resources, code, elements, threads)


def _read_cubin(cubin: bytes) -> tuple[Resources, Code]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _run("cuobjdump", "-res-usage", file.name)
        text = _run("nvdisasm", "-g", "-c", file.name)
    numbers = {name: int(n) for name, n in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    resources = Resources(numbers["REG"], numbers["STACK"] + numbers["LOCAL"], 0)
    code = Code([], {})
    source = ""
    # The label at which the threads of a barrier register meet again.
    meeting: dict[str, str] = {}
    for line in text.splitlines():
        if found := re.match(r'\s*//## File "([^"]*)"', line):
            source = Path(found[1]).name
        elif found := re.match(r"(\.L_x_\d+):", line):
            code.labels[found[1]] = len(code.instructions)
        elif found := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?)\s*;", line):
            word = found[1]
            label = re.search(r"`\((\.L_x_\d+)\)", word)
            target, falls = None, True
            bare = re.sub(r"^@!?U?P\w+\s+", "", word)
            if bare.startswith("BSSY") and label:
                meeting[word.split()[1].rstrip(",")] = label[1]
            elif bare.startswith("BSYNC"):
                target = meeting.get(bare.split()[-1])
            elif bare.startswith(("BRA", "JMP")):
                target = label[1] if label else None
                falls = word != bare or bool(re.search(r"\bU?P\d", bare))
            elif bare.startswith(("EXIT", "RET")):
                falls = word != bare
            code.instructions.append(Instruction(word, source, target, falls))
    return resources, code


def _read_amd(text: str, name: str) -> tuple[Resources, Code]:
    numbers = {name: int(n) for name, n in re.findall(r"^\s*\.(\w+):\s+(\d+)\s*$", text, re.MULTILINE)}
    resources = Resources(numbers["vgpr_count"], numbers["private_segment_fixed_size"], 0)
    files = {n: Path(name).name for n, name in re.findall(r'\.file\s+(\d+)\s+(?:"[^"]*"\s+)?"([^"]*)"', text)}
    code = Code([], {})
    source = ""
    # Before the kernel, there may be functions that it calls to report a failed assertion.
    for line in text[text.index(f"\n{name}:") :].splitlines():
        word = line.split(";")[0].strip()
        if found := re.match(r"\.loc\s+(\d+)", word):
            source = files.get(found[1], "")
        elif found := re.match(r"(\.LBB\w+):", word):
            code.labels[found[1]] = len(code.instructions)
        elif re.match(r"[a-z]+_\w+", word) and line[:1].isspace():
            found = re.match(r"s_c?branch\w*\s+(\S+)", word)
            falls = not word.startswith(("s_branch", "s_endpgm", "s_setpc"))
            code.instructions.append(Instruction(word, source, found[1] if found else None, falls))
        elif word.startswith(".Lfunc_end"):
            break
    return resources, code


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([TOOLS / tool, *arguments], check=True, capture_output=True, text=True).stdout

"""A kernel's machine code: its branches, its loops, and the ways through them.

Nothing is run; element_count.py counts what would be.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

# An access to global memory and its width: in bits if there is a number, else a type of at most 32 bits.
# LDGSTS copies to shared memory.
_SASS_ACCESS = re.compile(r"\b(LDG|LDGSTS|LD|STG|ST)\.E(?:\.\w+)*")
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

# Ways are compared that do the same, in so many steps from nothing to all that a loop has of it.
COMPARED = ("loaded", "stored", "exponentials")
STEPS = 32


@dataclass
class Instruction:
    """One machine instruction, as text of the disassembly or of the assembly."""

    text: str
    targets: tuple[str, ...] = ()
    """The labels it may jump to."""
    falls_through: bool = True
    executes: bool = True
    """Whether it does more than to take its turn: its predicate is not known to be false."""

    @cached_property
    def access(self) -> tuple[str, int] | None:
        """("load" or "store", bits), if the instruction accesses global memory."""
        if not self.executes:
            return None
        if found := _SASS_ACCESS.search(self.text):
            widths = _SASS_WIDTH.search(found[0])
            bits = int(widths[1] or widths[2]) if widths else 32
            return ("load" if found[1].startswith("LD") else "store"), bits
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

    @property
    def is_local(self) -> bool:
        """Whether it accesses local memory, where registers go that did not suffice."""
        return bool(re.search(r"\b(LDL|STL)\b|\bscratch_(load|store)", self.text))


@dataclass
class Block:
    """Instructions that are executed one after the other: only the last one jumps, and only to the first."""

    instructions: list[Instruction]
    successors: list[int]

    def __post_init__(self) -> None:
        bits = Counter[str]()
        for instruction in self.instructions:
            if instruction.access:
                bits[instruction.access[0]] += instruction.access[1]
        self.loaded, self.stored = bits["load"] // 8, bits["store"] // 8
        self.exponentials = sum(each.is_exponential and each.executes for each in self.instructions)


class Way(NamedTuple):
    """A way through code, and what a thread does on it."""

    instructions: int = 0
    loaded: int = 0
    """Bytes."""
    stored: int = 0
    """Bytes."""
    exponentials: int = 0
    last: tuple[int, Any] | None = None
    """The last block, and the same of what comes before."""

    def then(self, number: int, block: Block) -> Way:
        return Way(
            self.instructions + len(block.instructions),
            self.loaded + block.loaded,
            self.stored + block.stored,
            self.exponentials + block.exponentials,
            (number, self.last),
        )

    @property
    def blocks(self) -> list[int]:
        """In order."""
        found, at = [], self.last
        while at:
            number, at = at
            found.append(number)
        return found[::-1]


class Code:
    """A kernel: its instructions in order, and the labels that stand before some of them."""

    def __init__(self, instructions: Sequence[Instruction], labels: dict[str, int]) -> None:
        self.instructions = instructions
        count = len(instructions)
        places = {label: at for label, at in labels.items() if at < count}
        self.places = places
        # Whatever jumps ends a block, and so does what cannot fall through: a return, the end of a thread.
        ends = {i + 1 for i, each in enumerate(instructions) if each.targets or not each.falls_through}
        starts = sorted({0, *places.values(), *(end for end in ends if end < count)})
        number = {start: i for i, start in enumerate(starts)}
        self.starting = {label: number[at] for label, at in places.items()}
        """Which block begins at a label."""
        self.blocks: list[Block] = []
        for start, end in zip(starts, [*starts[1:], count], strict=True):
            last = instructions[end - 1]
            following = [self.starting[label] for label in last.targets if label in places]
            if last.falls_through and end < count:
                following.append(number[end])
            self.blocks.append(Block(list(instructions[start:end]), sorted(set(following))))

    def of(self, blocks: list[Block]) -> Code:
        """The same kernel, of which other blocks are left."""
        code = copy(self)
        code.__dict__.pop("loops", None)
        code.blocks = blocks
        return code

    @cached_property
    def loops(self) -> list[Loop]:
        """The natural loops: where a jump leads back to a block that dominates it, all between.

        Blocks of rare cases, which lie elsewhere but lead back, belong to the loop as well.
        """
        successors = [block.successors for block in self.blocks]
        return [Loop(head, body) for head, body in _natural_loops(successors).items()]

    def touches(self, blocks: Iterable[int]) -> bool:
        """Whether any of them accesses global memory."""
        return any(self.blocks[i].loaded or self.blocks[i].stored for i in blocks)

    def within(self, body: frozenset[int]) -> list[Loop]:
        """The innermost loops within a body, smaller than itself, that access global memory."""
        found = [loop for loop in self.loops if loop.body < body and self.touches(loop.body)]
        return [loop for loop in found if not any(other.body < loop.body for other in found)]

    @property
    def whole(self) -> Loop:
        """All of the kernel, as a loop of one turn."""
        return Loop(0, frozenset(range(len(self.blocks))))

    def ways(self, loop: Loop) -> list[Way]:
        """The ways through one turn of a loop, without a second turn of any loop inside.

        Of several that load, store and exponentiate about the same, only the shortest one is returned.
        """
        order, back = _order(loop, [block.successors for block in self.blocks])
        units = [
            max(1, sum(getattr(self.blocks[at], kind) for at in loop.body) // STEPS) for kind in COMPARED
        ]
        reached: dict[int, list[Way]] = {loop.head: [Way()]}
        found: list[Way] = []
        for at in order:
            block = self.blocks[at]
            here = [way.then(at, block) for way in _shortest(reached.pop(at, []), units)]
            if loop.head in block.successors or not block.successors:
                found += here
            for to in block.successors:
                if to in loop.body and to != loop.head and (at, to) not in back:
                    reached.setdefault(to, []).extend(here)
        return _shortest(found, units)

    def on(self, way: Way) -> Iterator[Instruction]:
        """The instructions of a way."""
        for at in way.blocks:
            yield from self.blocks[at].instructions


@dataclass(frozen=True)
class Loop:
    """A loop, by its blocks."""

    head: int
    body: frozenset[int]


def _shortest(ways: list[Way], units: list[int]) -> list[Way]:
    """The shortest of all that do the same, in units."""
    found: dict[tuple[int, int, int], Way] = {}
    loaded, stored, exponentials = units
    for way in ways:
        key = way.loaded // loaded, way.stored // stored, way.exponentials // exponentials
        if key not in found or way.instructions < found[key].instructions:
            found[key] = way
    return list(found.values())


def _order(loop: Loop, successors: Sequence[Sequence[int]]) -> tuple[list[int], set[tuple[int, int]]]:
    """The blocks of a loop, each after all that lead to it, and the jumps back, which that leaves out."""
    after: list[int] = []
    back: set[tuple[int, int]] = set()
    open_ones, seen = {loop.head}, {loop.head}
    stack = [(loop.head, iter(successors[loop.head]))]
    while stack:
        at, remaining = stack[-1]
        for to in remaining:
            if to in open_ones:
                back.add((at, to))
            elif to in loop.body and to not in seen:
                seen.add(to)
                open_ones.add(to)
                stack.append((to, iter(successors[to])))
                break
        else:
            after.append(at)
            open_ones.discard(at)
            stack.pop()
    return after[::-1], back


def _natural_loops(successors: Sequence[Sequence[int]]) -> dict[int, frozenset[int]]:
    predecessors: list[list[int]] = [[] for _ in successors]
    for i, following in enumerate(successors):
        for j in following:
            predecessors[j].append(i)
    dominators = _dominators(successors, predecessors)
    loops: dict[int, frozenset[int]] = {}
    for i, following in enumerate(successors):
        for head in following:
            if i not in dominators or not dominators[i] >> head & 1:
                continue
            body, waiting = {head}, [i]
            while waiting:
                at = waiting.pop()
                if at not in body:
                    body.add(at)
                    waiting += [before for before in predecessors[at] if before in dominators]
            loops[head] = loops.get(head, frozenset()) | body
    return loops


def _dominators(successors: Sequence[Sequence[int]], predecessors: Sequence[Sequence[int]]) -> dict[int, int]:
    """For each block that can be reached, the set of those on every way to it, as bits."""
    order, _ = _order(Loop(0, frozenset(range(len(successors)))), successors)
    everything = (1 << len(successors)) - 1
    found = {at: everything for at in order} | {0: 1}
    changed = True
    while changed:
        changed = False
        for at in order[1:]:
            common = everything
            for before in predecessors[at]:
                common &= found.get(before, everything)
            common |= 1 << at
            changed |= common != found[at]
            found[at] = common
    return found

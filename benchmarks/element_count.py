"""How many instructions a thread executes for each element, from a kernel's machine code.

What is asked for is the steady state: what all elements cost but for the first and the last ones.

- A kernel over elements has a loop whose turns store some elements each. How many, their bytes tell.
- A kernel over rows has a loop over rows. How many elements of a turn are one thread's, the launch tells. A
  row is accessed on the way through that loop, or in loops inside, which then take as many turns as it needs.

Code that a loop skips in most turns (ends of rows, refusals, numbers that need more care) does not count: of
all ways on which everything is loaded and stored that has to be, the shortest one does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from machine_code import Code, Instruction, Loop, Way

# A way may store a little less than a thread's share: the label's element is stored by itself, and the last
# thread of a row has less to do.
NEARLY = 0.97


@dataclass(frozen=True)
class Element:
    """What a kernel must do for each element."""

    loaded: float
    """Bytes of all operands that have a number for each element."""
    stored: float
    """Bytes of all gradients."""
    exponentials: float = 0
    """The fewest that there are."""


@dataclass
class Count:
    """What a thread executes for some elements."""

    elements: float
    parts: list[tuple[Way, float]] = field(default_factory=list)
    """Ways, and how often each is gone."""
    beside: int = 0
    """Instructions of the counted loops that are not on these ways."""
    missing: float = 0.0
    """Bytes of each element that are not stored on these ways."""
    is_sure: bool = True
    """Whether nothing beside these ways accesses memory or exponentiates; else, more may be executed."""

    def per_element(self, code: Code, counted: Callable[[Instruction], bool] = lambda _: True) -> float:
        """Instructions of a kind, for each element."""
        total = sum(sum(map(counted, code.on(way))) * times for way, times in self.parts)
        return total / self.elements

    def widths(self, code: Code, kind: str) -> str:
        """How many accesses have so many bits, such as "4x128 1x64"; `kind` is "load" or "store"."""
        accesses = (each.access for way, _ in self.parts for each in code.on(way))
        found = Counter(access[1] for access in accesses if access and access[0] == kind)
        return " ".join(f"{count}x{bits}" for bits, count in sorted(found.items(), reverse=True))


def count(code: Code, element: Element, share: float | None = None) -> Count:
    """What a thread executes for each element.

    Args:
        code: The kernel.
        element: What it must load and store.
        share: How many elements a thread has of one turn of the loop over rows; None for a kernel over
        elements.
    """
    if share is not None:
        return _of_rows(code, element, share)
    found = [
        (_lack(way.loaded / way.stored * element.stored, element), way.instructions / way.stored, way, loop)
        for loop in code.loops
        for way in code.ways(loop)
        if way.stored >= element.stored
    ]
    if not found:
        return Count(1, missing=element.stored)
    *_, way, loop = min(found, key=lambda each: each[:2])
    return _counted(code, loop, way.stored / element.stored, [(way, 1.0)])


def _lack(loaded: float, element: Element) -> float:
    """How many bytes of an element are not loaded; a kernel need not load what it does not use."""
    return max(0.0, round(NEARLY * element.loaded - loaded, 1))


def _of_rows(code: Code, element: Element, share: float) -> Count:
    storing = [loop for loop in code.loops if any(code.blocks[i].stored for i in loop.body)]
    outermost = [loop for loop in storing if not any(loop.body < other.body for other in storing)]
    found = [_of_row(code, loop, element, share) for loop in outermost or [code.whole]]
    return min(found, key=lambda count: (count.missing, count.per_element(code)))


def _of_row(code: Code, loop: Loop, element: Element, share: float) -> Count:
    """What a turn of the loop executes."""
    ways = code.ways(loop)
    needed = NEARLY * share * element.stored
    # Of the ways that store a whole share, or as much as there is, the one that loads what it has to.
    fewest = NEARLY * share * element.exponentials
    enough = [way for way in ways if way.stored >= needed and way.exponentials >= fewest]
    if enough:
        way = min(enough, key=lambda way: (_lack(way.loaded / share, element), way.instructions))
        # A compiler that unrolls makes a turn of several. Up to the next power of two, elements are masked
        # out.
        turns = int(way.stored / needed)
        return _counted(code, loop, share * turns, [(way, 1.0)])
    most = max(way.stored for way in ways)
    way = min((way for way in ways if way.stored == most), key=lambda way: way.instructions)
    left = max(0.0, share - way.stored / element.stored)
    passes = _passes(code, loop, element)
    parts = [(way, 1.0), *((inner, left / elements) for inner, elements in passes)]
    stored = sum(each.stored * times for each, times in parts) / share
    missing = max(0.0, round(NEARLY * element.stored - stored, 2))
    return replace(_counted(code, loop, share, parts), missing=missing)


def _passes(code: Code, loop: Loop, element: Element) -> list[tuple[Way, float]]:
    """The ways through the loops that walk a row, and how many elements a turn of each has.

    One of them stores. Others only load: if several have the same number of special instructions for each
    element, they are one that the compiler has made several of, or several that follow each other only in the
    longest rows.
    """
    best: dict[float | None, tuple[Way, float]] = {}
    for inner in code.within(loop.body):
        for way in code.ways(inner):
            stores = way.stored >= element.stored
            size = element.stored if stores else element.loaded
            elements = (way.stored if stores else way.loaded) / size if size else 0.0
            if elements < 1:
                continue
            special = sum(each.is_special for each in code.on(way))
            key = None if stores else round(special / elements, 2)
            if key not in best or way.instructions / elements < best[key][0].instructions / best[key][1]:
                best[key] = way, elements
    return list(best.values())


def _counted(code: Code, loop: Loop, elements: float, parts: list[tuple[Way, float]]) -> Count:
    on = {at for way, _ in parts for at in way.blocks}
    beside = [code.blocks[at] for at in loop.body - on]
    does_nothing = not any(block.loaded or block.stored or block.exponentials for block in beside)
    return Count(elements, parts, sum(len(block.instructions) for block in beside), is_sure=does_nothing)

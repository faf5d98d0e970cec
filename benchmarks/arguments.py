"""What the arguments of a launch decide in a kernel: sparse conditional constant propagation over SASS.

A kernel asks of its arguments which operands there are, of what dtype, and how they lie. What a launch was
sent is known, so these branches are followed, and code that they lead past is not there. A number is known
where all ways to an instruction agree in it; what is loaded, and who a thread is, is not known.

Instructions that are not evaluated here make unknown whatever they might write.
"""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache

from machine_code import Block, Code, Instruction
from operations import EVALUATED, UNIFORM, Known, predicate

# Where arguments begin in the constants of a kernel for sm_90, which begin with the sizes of block and grid.
ARGUMENTS_BEGIN = 0x210


def constants(blocks: int, threads: int, argument: bytes) -> dict[int, int]:
    """The bytes of a launch's constants, as far as they are known, by where they are."""
    numbers = [threads, 1, 1, blocks, 1, 1]
    sizes = b"".join(number.to_bytes(4, "little") for number in numbers)
    return dict(enumerate(sizes)) | dict(enumerate(argument, ARGUMENTS_BEGIN))


def with_arguments(code: Code, known: dict[int, int]) -> Code:
    """The kernel without the branches that are never taken, given the bytes of its constants."""
    entering: dict[int, Known] = {0: {}}
    following: dict[int, set[int]] = {}
    waiting = [0]
    while waiting:
        at = waiting.pop()
        values = entering[at].copy()
        block = code.blocks[at]
        for instruction in block.instructions:
            _execute(instruction, values, known, code)
        following[at] = _successors(code, at, values)
        for to in following[at]:
            before = entering.get(to)
            after = values.copy() if before is None else _agreed(before, values)
            if after != before:
                entering[to] = after
                waiting.append(to)
    blocks = [Block([], []) for _ in code.blocks]
    for at, to in following.items():
        blocks[at] = Block(_idle_ones(code, at, entering[at], known), sorted(to))
    return code.of(blocks)


def _idle_ones(code: Code, at: int, values: Known, known: dict[int, int]) -> list[Instruction]:
    """The instructions of a block, in which those that do nothing are marked."""
    found = []
    for instruction in code.blocks[at].instructions:
        idle = predicate(_parsed(instruction)[1], values) == 0
        found.append(replace(instruction, executes=False) if idle else instruction)
        _execute(instruction, values, known, code)
    return found


def _agreed(some: Known, others: Known) -> Known:
    """What is known in both cases."""
    found = {}
    for name, (bits, known) in some.items():
        other, other_known = others.get(name, (0, 0))
        if both := known & other_known & ~(bits ^ other):
            found[name] = bits & both, both
    return found


def _successors(code: Code, at: int, values: Known) -> set[int]:
    block = code.blocks[at]
    last = block.instructions[-1]
    jump = {code.starting[label] for label in last.targets if label in code.starting}
    fall = {at + 1} if last.falls_through and at + 1 < len(code.blocks) else set()
    operation, guard, operands = _parsed(last)
    conditions = [guard, *(x for x in operands if re.fullmatch(r"!?U?P\w", x))]
    if not operation.startswith(("BRA", "EXIT")) or "DIV" in operation:
        return jump | fall
    states = [predicate(each, values) for each in conditions]
    if 0 in states:
        return fall
    return jump | fall if None in states else jump


def _parsed(instruction: Instruction) -> tuple[str, str, list[str]]:
    """The operation, the predicate that guards it, and the operands."""
    return _parse(instruction.text)


@cache
def _parse(text: str) -> tuple[str, str, list[str]]:
    found = re.match(r"(?:@(!?U?P\w)\s+)?(\S+)\s*(.*)", text)
    assert found is not None
    operands = [each.strip().removesuffix(".reuse") for each in found[3].split(",")] if found[3] else []
    return found[2], found[1] or "PT", operands


def _execute(instruction: Instruction, values: Known, known: dict[int, int], code: Code) -> None:
    operation, guard, operands = _parsed(instruction)
    condition = predicate(guard, values)
    if condition == 0:
        return
    if operation.startswith("CALL.REL") and "$" in operands[0]:
        _call(operands[0], values, known, code)
    else:
        _write(operation, operands, values, known, certain=condition == 1)


def _call(function: str, values: Known, known: dict[int, int], code: Code) -> None:
    """Forgets what a function might change, whichever of its instructions are executed, in whatever order."""
    begin = code.places[function.strip("`()")]
    others = (at for name, at in code.places.items() if name.startswith("$") and at > begin)
    end = min(others, default=len(code.instructions))
    while True:
        before = values.copy()
        for each in code.instructions[begin:end]:
            operation, _, operands = _parsed(each)
            _write(operation, operands, values, known, certain=False)
        if values == before:
            return


def _write(
    operation: str, operands: list[str], values: Known, known: dict[int, int], *, certain: bool
) -> None:
    """Takes results into account, or, if an instruction may not be executed, what it would leave as it is."""
    base, *parts = operation.split(".")
    base = base[1:] if base in UNIFORM else base
    written: Known = {}
    if base in EVALUATED:
        EVALUATED[base](parts, operands, values, known, written)
    results = _may_write(operation, operands)
    after = {name: written[name] for name in results if name in written}
    if not certain:
        after = _agreed(after, values)
    for name in results:
        values.pop(name, None)
    values |= after


WRITE_NO_REGISTER = ("ST", "BRA", "EXIT", "RET", "BSSY", "BSYNC", "BAR", "WARPSYNC", "RED.", "CALL")


def _may_write(operation: str, operands: list[str]) -> list[str]:
    """Registers and predicates that an instruction might write: more rather than fewer."""
    if not operands or operation.startswith(
        ("ST", "BRA", "EXIT", "RET", "BSSY", "BSYNC", "BAR", "WARPSYNC", "RED.")
    ):
        return []
    predicates = [x for x in operands[:3] if re.fullmatch(r"!?U?P\w", x)]
    if operation.startswith("R2P"):
        return [f"P{n}" for n in range(7)]
    if "SETP" in operation or "PLOP3" in operation:
        return predicates[:2]
    # Predicates among the results stand before and behind a register.
    result = next((x for x in operands if x not in predicates), "")
    names = [x for x in predicates if not x.startswith("!")]
    if found := re.fullmatch(r"(U?R)(\d+)", result):
        names += [f"{found[1]}{int(found[2]) + i}" for i in range(_words_of(operation))]
    return names


def _words_of(operation: str) -> int:
    """How many registers a result may take."""
    if operation.startswith(("HMMA", "IMMA", "DMMA")):
        return 4
    wide = re.match(r"D[A-Z]|CS2R$", operation) or "64" in operation or "WIDE" in operation
    return 8 if "256" in operation else 4 if "128" in operation else 2 if wide else 1

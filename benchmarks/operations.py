"""What some instructions of NVIDIA's machine code do to words and predicates of which not all bits are known.

`EVALUATED` has a function for each operation, which is given the operation's further parts ("U32", "X"), the
operands, what is known, and the bytes of the constants, and adds what is known of the results.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import product

Known = dict[str, tuple[int, int]]
"""Words in registers ("R4", "UR4") and predicates ("P0"), as far as they are known: their bits, and which are
known."""

WORD = 0xFFFFFFFF


def predicate(name: str, values: Known) -> int | None:
    """A predicate, which may be negated, if it is known."""
    negated, bare = name.startswith("!"), name.lstrip("!")
    if bare in ("PT", "UPT"):
        return 1 - negated
    return values[bare][0] ^ negated if bare in values else None


def _bits(name: str, values: Known) -> tuple[int, int]:
    """An operand of 32 bits, and which of them are known."""
    found = re.fullmatch(r"([-~]?)(U?R\d+|U?RZ|-?0x[0-9a-f]+|-?\d+)", name)
    if found is None:
        return 0, 0
    bare = found[2]
    if bare in ("RZ", "URZ"):
        bits, known = 0, WORD
    elif "R" in bare:
        bits, known = values.get(bare, (0, 0))
    else:
        bits, known = int(bare, 0) & WORD, WORD
    if found[1] == "-":
        return (-bits & WORD, WORD) if known == WORD else (0, 0)
    return (~bits & known, known) if found[1] == "~" else (bits, known)


def _word(name: str, values: Known) -> int | None:
    """An operand of 32 bits, if all are known."""
    bits, known = _bits(name, values)
    return bits if known == WORD else None


def _words(names: list[str], values: Known) -> list[int] | None:
    found = [_word(name, values) for name in names]
    return None if None in found else [x for x in found if x is not None]


def _signed(x: int) -> int:
    return x - (1 << 32) if x >> 31 else x


Evaluate = Callable[[list[str], list[str], Known, dict[int, int], Known], None]


def _constant(parts: list[str], operands: list[str], values: Known, known: dict[int, int], to: Known) -> None:
    found = re.fullmatch(r"c\[0x0\]\[(?:(U?R\d+)\+?)?(-?0x[0-9a-f]+)?\]", operands[1])
    index = _word(found[1], values) if found and found[1] else 0
    if found is None or index is None:
        return
    at = (index + int(found[2] or "0", 0)) & WORD
    size = next(
        (int(bits) // 8 for bits in ("8", "16", "64") if any(x[-len(bits) :] == bits for x in parts)), 4
    )
    taken = [known.get(at + i) for i in range(size)]
    if None in taken:
        return
    value = int.from_bytes(bytes(x or 0 for x in taken), "little", signed=any(x[0] == "S" for x in parts))
    kind, first = re.fullmatch(r"(U?R)(\d+)", operands[0]).groups()  # type: ignore[union-attr]
    for i in range(max(1, size // 4)):
        to[f"{kind}{int(first) + i}"] = value >> 32 * i & WORD, WORD


def _move(parts: list[str], operands: list[str], values: Known, known: dict[int, int], to: Known) -> None:
    if operands[1].startswith("c["):
        _constant(parts, operands, values, known, to)
    elif (value := _word(operands[1], values)) is not None:
        to[operands[0]] = value, WORD


def _multiply_add(
    parts: list[str], operands: list[str], values: Known, known: dict[int, int], to: Known
) -> None:
    if set(parts) <= {"MOV", "U32", "IADD", "SHL"} and (given := _words(operands[1:4], values)):
        to[operands[0]] = given[0] * given[1] + given[2] & WORD, WORD


def _add(parts: list[str], operands: list[str], values: Known, known: dict[int, int], to: Known) -> None:
    sources = [x for x in operands[1:] if not re.fullmatch(r"!?U?P\w", x)]
    if "X" not in parts and (given := _words(sources, values)):
        to[operands[0]] = sum(given) & WORD, WORD


def _logic(parts: list[str], operands: list[str], values: Known, known: dict[int, int], to: Known) -> None:
    if flag := re.fullmatch(r"U?P\w", operands[0]):
        operands = operands[1:]
    table = _word(operands[4], values)
    if table is None:
        return
    sources = [_bits(name, values) for name in operands[1:4]]
    bits = sure = 0
    for i in range(32):
        choices = [[b >> i & 1] if k >> i & 1 else [0, 1] for b, k in sources]
        results = {table >> (a << 2 | b << 1 | c) & 1 for a, b, c in product(*choices)}
        if len(results) == 1:
            bits, sure = bits | results.pop() << i, sure | 1 << i
    to[operands[0]] = bits, sure
    # The predicate says whether any bit is set.
    if flag and (bits or sure == WORD):
        to[flag[0]] = int(bits != 0), 1


def _collect(parts: list[str], operands: list[str], values: Known, known: dict[int, int], to: Known) -> None:
    """Predicates as bits of a word, the others of which are kept."""
    chosen = _word(operands[3], values)
    if parts or chosen is None:
        return
    bits, sure = _bits(operands[2], values)
    bits, sure = bits & ~chosen, sure & ~chosen
    for n in range(7):
        state = predicate(f"P{n}", values)
        if chosen >> n & 1 and state is not None:
            bits, sure = bits | state << n, sure | 1 << n
    to[operands[0]] = bits, sure


def _compare(parts: list[str], operands: list[str], values: Known, known: dict[int, int], to: Known) -> None:
    relation, joins, extended = parts[0], "OR" if "OR" in parts else "AND", "EX" in parts
    combined = predicate(operands[4], values)
    holds = _holds(relation, "U32" in parts, _words(operands[2:4], values), extended, operands[5:], values)
    for name, value in ((operands[0], holds), (operands[1], None if holds is None else 1 - holds)):
        if re.fullmatch(r"U?P\d", name) and (result := _join(joins, value, combined)) is not None:
            to[name] = result, 1


def _holds(
    relation: str, unsigned: bool, given: list[int] | None, extended: bool, rest: list[str], values: Known
) -> int | None:
    """Whether a relation holds; of upper words, if `rest` says what lower ones have said."""
    lower = predicate(rest[0], values) if extended else None
    if given is None:
        return (
            {"NE": 1 if lower == 1 else None, "EQ": 0 if lower == 0 else None}.get(relation)
            if extended
            else None
        )
    a, b = given if unsigned else map(_signed, given)
    if extended and a == b:
        return lower
    return int({"EQ": a == b, "NE": a != b, "LT": a < b, "LE": a <= b, "GT": a > b, "GE": a >= b}[relation])


def _join(how: str, a: int | None, b: int | None) -> int | None:
    deciding = 1 if how == "OR" else 0
    if deciding in (a, b):
        return deciding
    return None if a is None or b is None else 1 - deciding


def _join_predicates(
    parts: list[str], operands: list[str], values: Known, known: dict[int, int], to: Known
) -> None:
    table = _word(operands[5], values)
    states = [predicate(name, values) for name in operands[2:5]]
    if table is None or not re.fullmatch(r"U?P\d", operands[0]):
        return
    choices = [[0, 1] if state is None else [state] for state in states]
    results = {table >> (a << 2 | b << 1 | c) & 1 for a, b, c in product(*choices)}
    if len(results) == 1:
        to[operands[0]] = results.pop(), 1


def _permute(parts: list[str], operands: list[str], values: Known, known: dict[int, int], to: Known) -> None:
    if parts or not (given := _words(operands[1:4], values)):
        return
    a, how, b = given
    both = (a | b << 32).to_bytes(8, "little")
    picked = []
    for i in range(4):
        nibble = how >> 4 * i & 15
        byte = both[nibble & 7]
        picked.append((255 if byte >> 7 else 0) if nibble & 8 else byte)
    to[operands[0]] = int.from_bytes(bytes(picked), "little"), WORD


def _select(parts: list[str], operands: list[str], values: Known, known: dict[int, int], to: Known) -> None:
    condition = predicate(operands[3], values)
    choices = {_word(operands[1], values)} if condition == 1 else {_word(operands[2], values)}
    if condition is None:
        choices = {_word(operands[1], values), _word(operands[2], values)}
    if len(choices) == 1 and (value := choices.pop()) is not None:
        to[operands[0]] = value, WORD


def _extreme(parts: list[str], operands: list[str], values: Known, known: dict[int, int], to: Known) -> None:
    least = predicate(operands[3], values)
    if least is not None and (given := _words(operands[1:3], values)):
        key = (lambda x: x) if "U32" in parts else _signed
        to[operands[0]] = (min if least else max)(given, key=key), WORD


def _shift(parts: list[str], operands: list[str], values: Known, known: dict[int, int], to: Known) -> None:
    if not (given := _words(operands[1:4], values)):
        return
    low, by, high = given
    if parts == ["L", "U32"] and by < 32:
        to[operands[0]] = low << by & WORD, WORD
    elif parts[:3] == ["R", "U32", "HI"] and by < 32:
        to[operands[0]] = high >> by, WORD
    elif parts[:3] == ["R", "S32", "HI"] and by < 32:
        to[operands[0]] = _signed(high) >> by & WORD, WORD


def _address(parts: list[str], operands: list[str], values: Known, known: dict[int, int], to: Known) -> None:
    sources = [x for x in operands[1:] if not re.fullmatch(r"!?U?P\w", x)]
    if not parts and len(sources) == 3 and (given := _words(sources, values)):
        to[operands[0]] = (given[0] << given[2]) + given[1] & WORD, WORD


EVALUATED: dict[str, Evaluate] = {
    "LDC": _constant,
    "MOV": _move,
    "R2UR": _move,
    "IMAD": _multiply_add,
    "IADD3": _add,
    "VIADD": _add,
    "LOP3": _logic,
    "ISETP": _compare,
    "P2R": _collect,
    "PLOP3": _join_predicates,
    "PRMT": _permute,
    "SEL": _select,
    "VIMNMX": _extreme,
    "SHF": _shift,
    "LEA": _address,
}
UNIFORM = {f"U{name}" for name in EVALUATED}
"""The same for registers that a warp shares."""

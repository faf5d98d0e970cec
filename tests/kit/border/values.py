"""Values for one argument of a right call: most of them wrong, some right, which `expected` decides."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fused_losses.registry import LOSSES, TWINS
from kit.border.calls import NONE, Arguments, Base, OtherBase

HUGE = 2**62
"""Elements whose bytes, and whose number beside those of any other dimension, overflow 64 bits."""

DTYPES = (
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.float8_e4m3fn,
    torch.complex64,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
)


@dataclass(frozen=True)
class Change:
    """What is done to the arguments of a right call."""

    argument: str
    label: str
    make: Callable[[Arguments], Any]
    """The argument's new value, from all arguments, which it may change, too."""
    refused: bool = False
    """Whether this is wrong without question; if not, the reference is asked."""


def _freed(x: Tensor, share: float) -> Tensor:
    x = x.clone()
    x.untyped_storage().resize_(int(x.untyped_storage().nbytes() * share))
    return x


_SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "one row fewer": lambda x: x[:-1],
    "one column fewer": lambda x: x[..., :-1],
    "no rows": lambda x: x[:0],
    "no columns": lambda x: x[..., :0],
    "one row": lambda x: x[:1],
    "one column": lambda x: x[..., :1],
    "one row more": lambda x: torch.cat([x, x[:1]]),
    "one number": lambda x: x.flatten()[0],
    "one number in a dimension": lambda x: x.flatten()[:1],
    "a dimension before": lambda x: x[None],
    "a dimension after": lambda x: x[..., None],
    "two of them": lambda x: torch.stack([x, x]),
    "flat": lambda x: x.flatten(),
    "empty": lambda x: x.new_empty(0),
    "nine dimensions": lambda x: x.new_zeros((2,) * 9).permute(*reversed(range(9))),
    "65 dimensions": lambda x: x.reshape((1,) * (65 - x.dim()) + x.shape),
    "too many to count": lambda x: x.flatten()[:1].view((1,) * (x.dim() + 1)).expand(HUGE, *(1,) * x.dim()),
    "in reverse order": lambda x: x.permute(*reversed(range(x.dim()))),
    "one row, expanded": lambda x: x[:1].expand(x.shape),
}

_MEMORY: dict[str, Callable[[Tensor], Any]] = {
    "meta": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse(),
    "freed": lambda x: _freed(x, 0),
    "half freed": lambda x: _freed(x, 0.5),
    "freed, but for an offset": lambda x: _freed(torch.stack([x, x]), 0.5)[1],
    "a list": lambda x: [x],
    "a string": lambda x: "mean",
}


def tensor_changes(name: str, right: Callable[[Arguments], Tensor]) -> Iterator[Change]:
    """Of a tensor; `right` is the one that all others are made from."""
    for label, change in _SHAPES.items():
        yield Change(name, label, lambda a, change=change: change(right(a)))
    for dtype in DTYPES:
        yield Change(name, str(dtype), lambda a, dtype=dtype: right(a).to(dtype))
    for label, change in _MEMORY.items():
        yield Change(name, label, lambda a, change=change: change(right(a)), refused=True)
    yield Change(name, "None", lambda a: None)
    yield Change(name, "unchanged", right)


NUMBERS = (math.nan, math.inf, -math.inf, 0.0, -1.0, 1.0, 1.5, 2.0, 3.0)
INTEGERS = (-1, 0, 1, 2, 3, 4, 9, 99, 2**31, HUGE, -HUGE)
BITS = (*range(34), 64, 128, -1, -2, 2**31, HUGE)

_OPTIONS: dict[str, tuple[Any, ...]] = {
    "reduction": INTEGERS,
    "gradients": BITS,
    "bytes": INTEGERS,
    "dtype": (None, torch.float32, *DTYPES),
    "label_smoothing": (*NUMBERS, 0.1),
    "ready": (True, False),
    "terms": (
        [0.1],
        [0.0] * 3,
        [0.0] * 5,
        [0.0, 0.0, 1.0, 0.0],
        [0.1, 0.2, 0.5, 6.0],
        [0.1, 0.2, 0.5, -6.0],
        *(
            [*([0.0, 0.0, 1.0, 0.0][:k]), bad, *([0.0, 0.0, 1.0, 0.0][k + 1 :])]
            for k in range(4)
            for bad in (math.nan, math.inf)
        ),
    ),
}


def option_changes(base: Base | OtherBase, name: str) -> Iterator[Change]:
    """Of what is no tensor."""
    values = list(_OPTIONS.get(name, ()))
    if name == "ignore_index":
        values = [None, *(NUMBERS if base.family == "pointwise" else INTEGERS)]
    if name == "parameters":
        right = base.arguments()["parameters"]
        values = [[], right[:-1], [*right, 1.0], [*right, 1.0, 1.0]]
        # What a loss is at an extreme parameter, torch's function says, where there is one.
        extremes = NUMBERS if base.name in TWINS else ()
        values += [[*right[:k], bad, *right[k + 1 :]] for k in range(len(right)) for bad in extremes]
        for k, parameter in enumerate(LOSSES[base.name].parameters if base.family == "pointwise" else ()):
            if parameter.startswith("gamma"):
                values += [[*right[:k], bad, *right[k + 1 :]] for bad in NUMBERS]
    for value in values:
        yield Change(name, str(value), lambda a, value=value: value)
    yield Change(name, "a string", lambda a: "mean", refused=True)
    yield Change(name, "a tensor", lambda a: torch.ones(2), refused=True)


def _share_memory(arguments: Arguments, x: Tensor, name: str, gap: int) -> None:
    """Moves `x` and the argument into one storage, the argument's first byte `gap` bytes after that of x."""
    other: Tensor = arguments[name]
    storage = torch.zeros(x.nbytes + other.nbytes + gap, dtype=torch.uint8)
    moved = storage[: x.nbytes].view(x.dtype).view(x.shape)
    moved.copy_(x)
    arguments[name] = storage[gap : gap + other.nbytes].view(other.dtype).view(other.shape)
    arguments[name].copy_(other)
    x.set_(moved)


def overlap_changes(base: Base | OtherBase, tensors: list[str]) -> Iterator[Change]:
    """What is written lies in what is read, or in itself."""
    writes = {"forward_inplace": "input", "backward_into": "into", "other": "gradient"}.get(base.kind)
    if writes is None:
        return

    def written(arguments: Arguments) -> Tensor:
        return arguments["into"][0] if writes == "into" else arguments[writes]

    for name in tensors:
        if name == writes:
            continue

        def shared(arguments: Arguments, name: str = name) -> Any:
            if arguments[name] is None:
                arguments[name] = base.candidates(arguments)[name]
            _share_memory(arguments, written(arguments), name, gap=8)
            return arguments[name]

        yield Change(name, "lies in what is written", shared, refused=True)

    def same(arguments: Arguments) -> Tensor:
        arguments["target"] = written(arguments)
        return arguments["target"]

    if not base.probabilities and base.family in ("pointwise", "vectors"):
        yield Change("target", "is what is written", same, refused=True)
    if writes == "into":
        yield Change("into", "the input itself", lambda a: [a["input"], *a["into"][1:]])
        yield Change("into", "twice the same", lambda a: [a["into"][0]] * len(a["into"]))


def into_changes() -> Iterator[Change]:
    """Of the tensors to write to."""

    def first(change: Callable[[Tensor], Any]) -> Callable[[Arguments], Any]:
        return lambda a: [change(a["into"][0]), *a["into"][1:]]

    for label, change in _SHAPES.items():
        yield Change("into", label, first(change))
    for dtype in DTYPES:
        yield Change("into", str(dtype), first(lambda x, dtype=dtype: x.to(dtype)))
    for label, change in _MEMORY.items():
        yield Change("into", label, first(change), refused=True)
    steps = {"overlapping rows": (5, 1), "every other": (40, 2)}
    for label, stride in steps.items():
        yield Change(
            "into", label, first(lambda x, s=stride: x.new_zeros(4000).as_strided(x.shape, s)), refused=True
        )
    yield Change("into", "none", lambda a: [], refused=True)
    yield Change("into", "one more", lambda a: [*a["into"], a["into"][0].clone()], refused=True)
    yield Change("into", "one fewer", lambda a: a["into"][:-1], refused=True)
    yield Change("into", "None", lambda a: None, refused=True)


def pair_changes(base: Base | OtherBase) -> Iterator[Change]:
    """Of two operands at once: sizes that have no product together."""

    def crossed(arguments: Arguments) -> Tensor:
        arguments["target"] = arguments["target"].flatten()[:1].expand(1, 2**40)
        return arguments["input"].flatten()[:1, None].expand(2**40, 1)

    def many(count: int) -> Callable[[Arguments], Tensor]:
        def make(arguments: Arguments) -> Tensor:
            for name in ("target", "extra"):
                if arguments[name] is not None:
                    arguments[name] = arguments[name].flatten()[:1].expand(count)
            return arguments["input"].flatten()[:1].expand(count)

        return make

    if base.family == "pointwise":
        yield Change("input", "crosses the target", crossed, refused=True)
        for count in (2**60, 2**61, HUGE):
            yield Change("input", f"{count} elements", many(count), refused=True)


def changes(base: Base | OtherBase) -> Iterator[Change]:
    """All that is tried of a right call: of the unreduced ones, what depends on that."""
    arguments = base.arguments()
    candidates = base.candidates(arguments)
    tensors = [name for name, x in arguments.items() if isinstance(x, Tensor) or name in candidates]
    for name in arguments:
        if base.reduction == NONE and name not in ("upstream", "lse_gradient", "weight", "dtype"):
            continue
        if name in tensors:

            def right(a: Arguments, name: str = name) -> Tensor:
                return base.candidates(a)[name] if a[name] is None else a[name]

            yield from tensor_changes(name, right)
        elif name == "into":
            yield from into_changes()
        else:
            yield from option_changes(base, name)
    yield from overlap_changes(base, tensors)
    yield from pair_changes(base)

"""Makes calls in child processes, which may die of one, and judges what comes of each."""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor

from kit.border.calls import Arguments, Base, OtherBase
from kit.border.expected import Refused, results_of
from kit.border.values import Change

SECONDS = 60
"""That a call may take before it counts as one that hangs; the slowest, interpreted, take a second."""

IMPOSSIBLE = "impossible"
"""The verdict where torch makes no such tensor, and no call is made."""

GOOD = ("refused", "right", IMPOSSIBLE)

Verdict = tuple[str, str]
"""What came of a call, and more words about it."""


@dataclass(frozen=True)
class Attempt:
    """A call with one argument changed."""

    base: Base | OtherBase
    change: Change

    def __str__(self) -> str:
        return f"{self.base}: {self.change.argument} is {self.change.label}"

    def arguments(self) -> Arguments:
        """The same values in new tensors each time."""
        arguments = self.base.arguments()
        arguments[self.change.argument] = self.change.make(arguments)
        return arguments


def walk(attempts: Sequence[Attempt]) -> list[Verdict]:
    """What comes of each; a call that ends its process is followed by the next one in another."""
    # Imports what fake tensors need, which would take each child seconds.
    torch.ops.fused_losses.scale_(torch.ones(1, device="meta"), torch.ones((), device="meta"))
    verdicts: list[Verdict] = []
    while len(verdicts) < len(attempts):
        _one_child(attempts, verdicts)
    return verdicts


def _one_child(attempts: Sequence[Attempt], verdicts: list[Verdict]) -> None:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_make_calls, args=(attempts[len(verdicts) :], theirs))
    child.start()
    theirs.close()
    try:
        while len(verdicts) < len(attempts):
            if not ours.poll(SECONDS):
                child.kill()
                verdicts.append(("hangs", f"{SECONDS} s"))
                break
            verdicts.append(ours.recv())
    except EOFError:
        child.join()
        verdicts.append(
            ("crashes", signal.Signals(-child.exitcode).name if child.exitcode < 0 else str(child.exitcode))
        )
    child.join()


def _make_calls(attempts: Sequence[Attempt], pipe: Connection) -> None:
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # What a crash has to say: it is expected, and told by the verdict.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    for attempt in attempts:
        pipe.send(judge(attempt))
    pipe.close()
    os._exit(0)


def judge(attempt: Attempt) -> Verdict:
    """Makes the call."""
    base = attempt.base
    try:
        arguments, before = attempt.arguments(), attempt.arguments()
    except (RuntimeError, IndexError, TypeError) as error:
        return IMPOSSIBLE, f"torch makes no such tensor: {error}"
    try:
        results = base.operator(*arguments.values())
    except Exception as error:
        return _judge_error(attempt, error, arguments, before)
    if attempt.change.refused:
        return "silent", "it returns"
    try:
        expected = results_of(base, before)
    except Refused as why:
        return "silent", f"it returns, but for its {why}"
    except Exception as error:
        return "silent", f"it returns, but torch raises {error}"
    if base.kind == "other":
        results = [arguments["gradient"]] if base.name == "scale_" else []
    results = list(results or []) + arguments.get("into", [])
    if base.kind == "forward_inplace":
        results.append(arguments["input"])
    return _compare(results, expected, before)


def _judge_error(attempt: Attempt, error: Exception, arguments: Arguments, before: Arguments) -> Verdict:
    text = str(error).split("\n\nThis is")[0]
    if isinstance(error, NotImplementedError) and attempt.change.label == "sparse":
        return "refused", text  # by torch, which finds no kernel
    if isinstance(error, MemoryError) or "allocate" in text:
        return "refused", text  # sizes that are right, and too large for any memory
    if re.search("target.* out of (bounds|range)", text, re.IGNORECASE):
        return "refused", text  # now that there are fewer classes
    if not isinstance(error, RuntimeError):
        return "vague", f"{type(error).__name__}: {text}"
    named = [name for name in arguments if re.search(rf"\b{name}\b", text)]
    if not named or attempt.base.name not in text or not re.search(r"\bbut\b", text):
        return "vague", f"{type(error).__name__}: {text}"
    for old, new in zip(_numbers(before), _numbers(arguments), strict=True):
        if not torch.equal(old.nan_to_num(), new.nan_to_num()):
            return "changed", text
    return "refused", text


def _numbers(arguments: Arguments) -> list[Tensor]:
    """Of the tensors that have some: those that an error must leave alone."""
    tensors = [x for x in (*arguments.values(), *_list(arguments.get("into"))) if isinstance(x, Tensor)]
    return [
        x
        for x in tensors
        if x.layout is torch.strided
        and x.device.type != "meta"
        and x.numel() < 2**20
        and x.dtype in (torch.float32, torch.float64, torch.int64)
        and x.untyped_storage().nbytes() >= x.numel() * x.element_size()
    ]


def _list(into: Any) -> list[Any]:
    return into if isinstance(into, list) else []


def _compare(results: list[Tensor], expected: list[Tensor], before: Arguments) -> Verdict:
    if len(results) != len(expected):
        return "silent", f"{len(results)} tensors instead of {len(expected)}"
    floats = [
        x.dtype for x in (*results, *before.values()) if isinstance(x, Tensor) and x.is_floating_point()
    ]
    bound = 64 * max((torch.finfo(dtype).eps for dtype in floats), default=0.0)
    for result, right in zip(results, expected, strict=True):
        try:
            torch.testing.assert_close(result, right, equal_nan=True, rtol=bound, atol=bound)
        except AssertionError as error:
            return "silent", f"a wrong result: {error}".replace("\n", " ")
    return "right", ""

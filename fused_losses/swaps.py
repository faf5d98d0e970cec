"""Entries of dictionaries (a module's names, a table of functions), and attributes, replaced and put back."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

logger = logging.getLogger("fused_losses")


class Attributes:
    """The attributes of an object as the entries of a dictionary, for those that `vars` does not have."""

    def __init__(self, owner: object) -> None:
        self._owner = owner

    def get(self, name: str, default: object = None) -> Any:
        """The attribute of that name."""
        return getattr(self._owner, name, default)

    def __setitem__(self, name: str, value: object) -> None:
        setattr(self._owner, name, value)

    def __delitem__(self, name: str) -> None:
        delattr(self._owner, name)


@dataclass(frozen=True)
class Swap:
    """An entry of a dictionary, and what takes its place."""

    place: dict[Any, Any] | Attributes
    key: Any
    replacement: Any
    name: str | None = None
    """The name that users know the entry by; None for one that only accompanies another."""

    @property
    def _identity(self) -> tuple[int, Any, int]:
        return id(self.place), self.key, id(self.replacement)

    @property
    def _is_in_place(self) -> bool:
        return self.place.get(self.key) is self.replacement


@dataclass
class _Hold:
    """What a swap has displaced, and how many patches hold the swap in place."""

    displaced: Any
    patches: int = 0


_ABSENT = object()
"""What a swap has displaced where the dictionary had no such key."""

_holds: dict[tuple[int, Any, int], _Hold] = {}
"""The swaps that are in place, by their identity."""

_lock = threading.Lock()


class Patch:
    """Replacements that are in effect from construction until `undo`, or until the end of a `with` block.

    Patches may be nested, and undone in any order: an entry comes back with the last patch that holds it.

    Raises:
        RuntimeError: something else has taken the place of what an earlier patch put there.
    """

    replaced: tuple[str, ...]
    """The qualified names of what is replaced."""

    def __init__(self, swaps: Iterable[Swap]) -> None:
        self._swaps = tuple(swaps)
        self.replaced = tuple(swap.name for swap in self._swaps if swap.name)
        with _lock:
            _check_in_place(swap for swap in self._swaps if swap._identity in _holds)
            for swap in self._swaps:
                displaced = swap.place.get(swap.key, _ABSENT)
                _holds.setdefault(swap._identity, _Hold(displaced)).patches += 1
                swap.place[swap.key] = swap.replacement
        logger.info("replaced %s", ", ".join(self.replaced))

    def undo(self) -> None:
        """Puts back what was there before, unless another patch still holds it; a second time does nothing.

        Raises:
            RuntimeError: something else has replaced what this patch put there. Nothing is changed then, so
                this can be called again once that is undone.
        """
        with _lock:
            _check_in_place(swap for swap in self._swaps if _holds[swap._identity].patches == 1)
            for swap in self._swaps:
                hold = _holds[swap._identity]
                hold.patches -= 1
                if hold.patches:
                    continue
                del _holds[swap._identity]
                if hold.displaced is _ABSENT:
                    del swap.place[swap.key]
                else:
                    swap.place[swap.key] = hold.displaced
            was_active, self._swaps = bool(self._swaps), ()
        if was_active:
            logger.info("restored %s", ", ".join(self.replaced))

    def __enter__(self) -> Patch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.undo()

    def __repr__(self) -> str:
        names = ", ".join(self.replaced[:2]) + ", ..." * (len(self.replaced) > 2)
        return f"<Patch of {len(self.replaced)} names ({names}), {'active' if self._swaps else 'undone'}>"


def _check_in_place(swaps: Iterable[Swap]) -> None:
    """Raises RuntimeError if something else has taken the place of a replacement."""
    strays = [swap.name or str(swap.key) for swap in swaps if not swap._is_in_place]
    if strays:
        raise RuntimeError(
            f"{', '.join(strays)} has been replaced again since a patch of fused_losses: undo that first."
        )

"""The plans of all losses, by name: who asks one learns which call kernels would run, and runs nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from fused_losses.call import Call

Planner = Callable[..., Call | None]
"""A pure function of a loss's arguments, without `backward` and deprecated ones: the call that kernels run,
or None where torch's function is to run."""

PLANS: dict[str, Planner] = {}
"""By the loss's name; every module of this package enters its own."""

P = TypeVar("P", bound=Planner)


def plans(name: str) -> Callable[[P], P]:
    """A decorator: enters the function as the planner of the loss of that name."""

    def enter(planner: P) -> P:
        PLANS[name] = planner
        return planner

    return enter

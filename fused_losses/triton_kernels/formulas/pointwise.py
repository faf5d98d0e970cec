"""What every pointwise loss is made of: its value and its derivatives, and nothing else.

A formula is a function of x, t, third (None where absent), number, FLAGS, all of them elements but the last
two: the loss's float parameter, and its boolean ones, which are compiled in. It returns the value and three
derivatives; those that there are not, or that are not wanted, may be anything, and cost nothing. Element
weights, ignored elements, reductions and upstream gradients belong to the engine.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Formula:
    """A formula, and what the engine must know of it."""

    terms: Any
    flags: int = 0
    """How many of the loss's first parameters are boolean."""
    in_domain: Any = None
    """Whether x, t, third are such as the loss is defined for; if not, `outside` says why."""
    outside: str = ""
    mean_over_weight: bool = False
    """Whether reduction="mean" divides by the sum of the weights instead of the count."""

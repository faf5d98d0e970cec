"""What every pointwise loss is made of: its value and its derivatives, and nothing else.

A formula is a function (x, t, third, numbers, FLAGS, ROUNDED) of blocks of elements, all float32 or all
float64:

    x, t        input and target
    third       the third operand, None where it is absent
    numbers     the loss's float parameters, in the registry's order: MOST_NUMBERS scalars of float64, 0 where
                the loss has fewer
    FLAGS       the loss's boolean parameters, in the registry's order; compiled in
    ROUNDED     what will be rounded to 16 bits, compiled in: whether the value is, as it is if no operand is
                wider; and whether the derivative with respect to x is, as it is if x is not wider

It returns the value and a tuple of derivatives: with respect to x, t and third, as far as the loss has them.
Those that nobody wants are not stored, and so cost nothing. Element weights, ignored elements, reductions and
upstream gradients belong to the engine.
"""

from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl

MOST_NUMBERS = 4
"""How many float parameters a loss may have. Each is an argument of the kernel by itself, since Triton passes
the numbers in a tuple as float32."""


@triton.jit
def scaled(k, derivative, scale, x, t, third, FLAGS: tl.constexpr):
    """The k-th derivative times the upstream gradient and the weight."""
    return derivative * scale


@dataclass(frozen=True)
class Formula:
    """A formula, and what the engine must know of it."""

    terms: Any
    """The function: value and derivatives."""
    holds: Any = None
    """A function (x, t, third): whether the operands are as they must be, for every element."""
    refusal: str | None = None
    """What the device's assertion says where they are not."""
    scaled: Any = scaled
    """A function (k, derivative, scale, x, t, third, FLAGS): the k-th derivative times `scale`."""

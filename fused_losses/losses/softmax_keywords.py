"""The keywords of losses of a softmax that torch does not have, as type checkers know them.

A call returns a Tensor if only the loss is asked for, and a CrossEntropyOutput otherwise. Each overload takes
the keywords of one of these classes. Only type checkers read this file.
"""

from __future__ import annotations

from typing import Literal, TypedDict

from typing_extensions import Required


class Terms(TypedDict, total=False):
    """What makes the loss another one."""

    z_loss: float
    entropy: float
    logit_scale: float
    softcap: float | None


class Alone(Terms, total=False):
    """Nothing besides the loss."""

    return_lse: Literal[False]
    return_z_loss: Literal[False]
    return_accuracy: Literal[False]
    return_argmax: Literal[False]


class WithLse(Terms, total=False):
    """Log-sum-exps, and maybe more."""

    return_lse: Required[Literal[True]]
    return_z_loss: bool
    return_accuracy: bool
    return_argmax: bool


class WithZLoss(Terms, total=False):
    """The z-loss, and maybe more."""

    return_lse: bool
    return_z_loss: Required[Literal[True]]
    return_accuracy: bool
    return_argmax: bool


class WithAccuracy(Terms, total=False):
    """The accuracy, and maybe more."""

    return_lse: bool
    return_z_loss: bool
    return_accuracy: Required[Literal[True]]
    return_argmax: bool


class WithArgmax(Terms, total=False):
    """The largest logits' classes, and maybe more."""

    return_lse: bool
    return_z_loss: bool
    return_accuracy: bool
    return_argmax: Required[Literal[True]]


class Unknown(Terms, total=False):
    """Flags that are not known before the program runs."""

    return_lse: bool
    return_z_loss: bool
    return_accuracy: bool
    return_argmax: bool

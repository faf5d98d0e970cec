"""What torch refuses and what it takes: compared call by call, for the tests of bad input."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F

import fused_losses.functional as L


def outcome(function, arguments, options):
    """The exception's type, or the value."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return function(*arguments, **options)
        except Exception as error:
            return type(error)


def same(name: str, *arguments, **options) -> None:
    """The same exception; or the same values, to what the least precise operand allows, in the same dtype."""
    ours, theirs = (outcome(getattr(module, name), arguments, options) for module in (L, F))
    if isinstance(theirs, type) or isinstance(ours, type):
        assert ours is theirs, f"{ours} instead of {theirs}"
        return
    tensors = [x for x in (theirs, *arguments) if isinstance(x, torch.Tensor)]
    floats = [x.dtype for x in tensors if x.is_floating_point() or x.is_complex()]
    bound = 16 * max(torch.finfo(dtype).eps for dtype in floats)
    torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=bound, atol=bound)

"""Which rows of a head's input, and which of its classes, have losses that count.

A head's gradients are sums, and a factor multiplies them afterwards. It is infinite or NaN where the mean of
nothing is taken, or a sum is divided by 0 items. Torch multiplies the logits' gradients instead, and those of
ignored rows are 0 whatever the factor: so the factor is kept from all sums that nothing was added to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_losses.call import Call, PointwiseOptions, SoftmaxOptions
from fused_losses.linear import chunks


class Counted(NamedTuple):
    """What has losses that count."""

    rows: Tensor
    """Whether any loss of a row counts, (N), bool."""
    classes: Tensor
    """Whether any loss of a class counts, bool, broadcastable with the head's classes (V) or (C, d1, ...)."""

    @staticmethod
    def of_rows(counts: Tensor) -> Counted:
        """Of a softmax, given whether each position of each row counts, (N) or (N, d1, ...)."""
        rows = counts.flatten(1).any(1) if counts.dim() > 1 else counts
        return Counted(rows, counts.any(0, keepdim=True))


def may_leave_out(call: Call) -> bool:
    """Whether some losses of a call may not count, by its options alone."""
    if isinstance(call.options, SoftmaxOptions):
        return not call.target.is_floating_point()
    return isinstance(call.options, PointwiseOptions) and call.options.ignore_index is not None


def counted(call: Call, chunk_rows: int) -> Counted:
    """What has losses that count, for a call that `may_leave_out` some.

    Args:
        call: the call; its input (N, V) or (N, C, d1, ...) needs no memory.
        chunk_rows: for how many rows at a time a mask of all elements is made.
    """
    assert isinstance(call.options, SoftmaxOptions | PointwiseOptions)
    ignored: Any = call.options.ignore_index
    if isinstance(call.options, SoftmaxOptions):
        return Counted.of_rows(call.target != ignored)
    rows = call.input.new_zeros(call.input.shape[0], dtype=torch.bool)
    classes = call.input.new_zeros(call.input.shape[1:], dtype=torch.bool)
    for chunk in chunks.Rows(rows.shape[0]).chunks(chunk_rows):
        target, _, _ = chunks.operands_of_rows(call, chunk)
        counts = (target != ignored).expand(rows[chunk].shape[0], *classes.shape)
        chunks.put(rows, chunk, counts.any(1))
        classes |= counts.any(0)
    return Counted(rows, classes)


def scaled(
    gradients: Sequence[Tensor | None], factor: Tensor, counts: Counted | None, in_place: bool
) -> list[Tensor | None]:
    """Gradients of input, weight and bias, each a sum or None, times a factor () where anything counts.

    Args:
        gradients: (N, D), (V, D) or (C, d1, ..., D), and (V) or (C, d1, ...).
        factor: (), floating.
        counts: what counts; None for everything.
        in_place: whether the gradients themselves are multiplied, since a head is large.
    """
    input, weight, bias = gradients
    classes = None if counts is None else counts.classes
    masks = (
        None if counts is None else counts.rows.unsqueeze(-1),
        None if classes is None else classes.unsqueeze(-1),
        classes,
    )
    results: list[Tensor | None] = []
    for gradient, mask in zip((input, weight, bias), masks, strict=True):
        if gradient is None:
            results.append(None)
            continue
        own = factor.to(gradient.dtype)
        own = own if mask is None else torch.where(mask, own, 0)
        results.append(gradient.mul_(own) if in_place else gradient * own)
    return results

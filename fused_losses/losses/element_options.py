"""What elementwise losses take beyond torch: targets that are ignored, and what the mean divides by."""

from __future__ import annotations

from torch import Tensor

from fused_losses.call import PointwiseOptions
from fused_losses.losses.checks import as_element, check_numbers
from fused_losses.losses.softmax_outputs import divisor_of


def element_options(
    parameters: tuple[float, ...],
    input: Tensor,
    target: Tensor,
    reduction: str,
    ignore_index: float | None,
    normalizer: Tensor | float | None,
) -> PointwiseOptions:
    """The options of an elementwise loss's operators.

    Args:
        parameters: the formula's numbers.
        input: the operand on whose device the loss is.
        target: what `ignore_index` is compared with; it may be no tensor, where torch is to say so.
        reduction: "none", "mean" or "sum".
        ignore_index: elements whose target equals this do not count.
        normalizer: what the mean divides by instead: a number, or a tensor of one.

    Raises:
        TypeError: an ignored target that is no number.
        ValueError: what `divisor_of` raises.
    """
    if ignore_index is not None:
        check_numbers(ignore_index=ignore_index)
        if isinstance(target, Tensor):
            ignore_index = as_element(ignore_index, target.dtype)
    divisor = None if normalizer is None else divisor_of(normalizer, reduction, input.device)
    return PointwiseOptions(parameters, ignore_index, divisor)


PLAIN_BINARY = PointwiseOptions((0.0,))
"""The options of a binary cross-entropy as torch has it."""


def exceed_torch(
    ignore_index: float | None, label_smoothing: float, normalizer: Tensor | float | None
) -> bool:
    """Whether an option that torch's functions do not have is set."""
    # A normalizer may be a tensor, or stand for one, and is not to be compared.
    return ignore_index is not None or normalizer is not None or label_smoothing != 0.0


def binary_options(
    input: Tensor,
    target: Tensor,
    reduction: str,
    ignore_index: float | None,
    label_smoothing: float,
    normalizer: Tensor | float | None,
) -> PointwiseOptions:
    """The operators' options of a binary cross-entropy.

    Raises:
        TypeError: an option that is no number.
        ValueError: a smoothing outside [0, 1], and what `divisor_of` raises.
    """
    if not exceed_torch(ignore_index, label_smoothing, normalizer):
        return PLAIN_BINARY
    check_numbers(label_smoothing=label_smoothing)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must be between 0 and 1, but it is {label_smoothing}")
    return element_options((float(label_smoothing),), input, target, reduction, ignore_index, normalizer)

"""What operators refuse of a loss's operands and options, engine by engine.

Each check returns the bits of the gradients that such a call can be asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fused_losses.call import accumulate_dtype
from fused_losses.operator_checks.checks import FLOATING, Checks, dtype_name
from fused_losses.registry import EXTRA_GRADIENT, INPUT_GRADIENT, TARGET_GRADIENT, Family, Loss
from fused_losses.shapes import class_dim, positions


@dataclass(frozen=True)
class Arguments:
    """The arguments that the four operators of a loss share, as they were given: nothing of them is known."""

    loss: Loss
    input: Tensor
    target: Tensor
    weight: Tensor | None
    extra: Tensor | None
    """The third operand; in a backward of the softmax, the statistics of rows."""
    options: Any
    """The options of the loss's family, by name."""
    reduction: int
    gradients: int
    """A sum of bits: what is asked for."""
    upstream: Tensor | None = None
    """The gradient of the loss; None in a forward."""

    @property
    def tensors(self) -> dict[str, Tensor | None]:
        """The tensors that are read, by their names in the operator's schema."""
        named = {
            "input": self.input,
            "target": self.target,
            "weight": self.weight,
            "extra": self.extra,
            "upstream": self.upstream,
        }
        for name in ("normalizer", "lse_gradient"):
            if hasattr(self.options, name):
                named[name] = getattr(self.options, name)
        return named


def _check_pointwise(checks: Checks, call: Arguments) -> int:
    """Checks a loss of elements, whose operands broadcast with each other, and its weight to them."""
    checks.floating(target=call.target, extra=call.extra, weight=call.weight)
    if call.loss.differentiable & EXTRA_GRADIENT:
        checks.present(extra=call.extra)
    elif not call.loss.optional_extra:
        checks.absent(extra=call.extra)
    shape = checks.broadcast(input=call.input, target=call.target, extra=call.extra)
    checks.spans(shape, weight=call.weight)
    checks.parameters(call.options.parameters, len(call.loss.parameters))
    for name, value in zip(call.loss.parameters, call.options.parameters, strict=True):
        if name == "label_smoothing" and not 0 <= value <= 1:
            checks.refuse("parameters", "hold a label smoothing between 0 and 1", value)
        if name.startswith("gamma") and not 0 <= value < math.inf:
            checks.refuse("parameters", f"hold a {name} that is finite and not below 0", value)
    if call.options.ignore_index is not None and "ignore_index" not in call.loss.extensions:
        checks.refuse("ignore_index", "be None", call.options.ignore_index)
    _check_normalizer(checks, call.options.normalizer)
    if not call.reduction:
        checks.shape(shape, upstream=call.upstream)
    return call.loss.differentiable


def _check_normalizer(checks: Checks, normalizer: Tensor | None) -> None:
    """Checks what a mean divides by instead."""
    if normalizer is not None and (normalizer.dim() or normalizer.dtype is not torch.float64):
        checks.refuse("normalizer", "be float64 without dimensions", normalizer)


def _check_vectors(checks: Checks, call: Arguments) -> int:
    """Checks a loss of vectors (..., D), which broadcast with each other."""
    (parameters,) = call.options
    checks.absent(weight=call.weight)
    checks.parameters(parameters, len(call.loss.parameters))
    checks.present(extra=call.extra)
    checks.floating(target=call.target, extra=call.extra)
    operands = {"input": call.input, "target": call.target, "extra": call.extra}
    for name, operand in operands.items():
        assert operand is not None
        if operand.dim() == 0 or operand.shape[-1] == 0:
            checks.refuse(name, "hold vectors of one element or more in its last dimension", operand)
    shape = checks.broadcast(**operands)
    assert call.extra is not None
    if not call.loss.differentiable & EXTRA_GRADIENT:
        if call.extra.shape[-1] != 1:
            checks.refuse(
                "extra", "hold one number for each vector, in a last dimension of size 1", call.extra
            )
    elif parameters[1] == 0 and not any(parameters[4:]):
        checks.refuse("parameters", "hold a p, the second, other than 0", "0")
    if not call.reduction:
        checks.shape(shape[:-1], upstream=call.upstream)
    return call.loss.differentiable


def _check_softmax(checks: Checks, call: Arguments) -> int:
    """Checks a loss of the softmax family: input (N, C, d1, ...) or (C)."""
    ignore_index, label_smoothing, terms, normalizer, lse_gradient = call.options
    input, target, has_softmax = call.input, call.target, call.loss.has_statistics
    if input.dim() == 0 or input.shape[class_dim(input)] == 0:
        checks.refuse("input", "have shape (N, C, ...) or (C,), of one class or more", input)
    rows = positions(input)
    if not 0 <= label_smoothing <= has_softmax:
        checks.refuse("label_smoothing", "be between 0 and 1" if has_softmax else "be 0", label_smoothing)
    if len(terms) not in ((0, 4) if has_softmax else (0,)):
        checks.refuse("terms", "hold no or four numbers" if has_softmax else "hold no numbers", len(terms))
    has_labels = target.dtype in (torch.int64, torch.uint8)
    _check_target(checks, input, target, has_labels, has_softmax)
    if not has_labels and ignore_index >= 0:
        checks.refuse("ignore_index", "be negative, since the target holds probabilities", ignore_index)
    checks.floating(weight=call.weight, lse_gradient=lse_gradient)
    checks.shape(input.shape[class_dim(input) :][:1], weight=call.weight)
    _check_normalizer(checks, normalizer)
    if not has_softmax:
        checks.absent(extra=call.extra, lse_gradient=lse_gradient)
    checks.shape(rows, lse_gradient=lse_gradient)
    if call.extra is not None:
        _check_statistics(checks, input, call.extra, 3 if terms and terms[1] else 2, rows.numel())
    if not call.reduction:
        checks.shape(rows, upstream=call.upstream)
    return INPUT_GRADIENT if has_labels else INPUT_GRADIENT | TARGET_GRADIENT


def _check_target(checks: Checks, input: Tensor, target: Tensor, has_labels: bool, has_softmax: bool) -> None:
    """Checks the target of an input (N, C, d1, ...): labels (N, d1, ...), or probabilities of its shape."""
    is_double = input.dtype is torch.float64
    if has_labels:
        fits = target.shape == positions(input)
    else:
        fits = has_softmax and target.dtype in FLOATING and (target.dtype is torch.float64) == is_double
        fits = fits and target.shape == input.shape
    if not fits:
        expected = f"be int64 or uint8 class indices of shape {tuple(positions(input))}"
        if has_softmax:
            dtypes = "float64" if is_double else "float32, bfloat16 or float16"
            expected += f", or {dtypes} probabilities of shape {tuple(input.shape)}"
        checks.refuse("target", expected, target)


def _check_statistics(checks: Checks, input: Tensor, statistics: Tensor, numbers: int, rows: int) -> None:
    """Checks what a forward of the softmax has kept of its rows: (numbers, rows), float32 or float64."""
    dtype = accumulate_dtype(input.dtype)
    shape = (numbers, rows)
    if statistics.dtype is not dtype or statistics.shape != shape or not statistics.is_contiguous():
        expected = f"be the statistics of this input, {dtype_name(dtype)} of shape {shape} and contiguous"
        checks.refuse("extra", expected, statistics)


def _check_class_margin(checks: Checks, call: Arguments) -> int:
    """Checks a loss of class margins: input (N, C) or (C)."""
    (parameters,) = call.options
    input, target, count = call.input, call.target, len(call.loss.parameters)
    if not 1 <= input.dim() <= 2 or input.shape[-1] == 0:
        checks.refuse("input", "have shape (N, C) or (C,), of one class or more", input)
    if target.dtype is not torch.int64:
        checks.refuse("target", "be int64 class indices", target)
    checks.absent(extra=call.extra)
    checks.parameters(parameters, count)
    rows, classes = (1, *input.shape)[-2:]
    if count == 0:
        checks.absent(weight=call.weight)
        checks.shape(input.shape, target=target)
    elif parameters[0] not in (1, 2):
        checks.refuse("parameters", "begin with p, 1 or 2", parameters[0])
    checks.floating(weight=call.weight)
    numbers: dict[str, tuple[Tensor | None, int]] = {
        "target": (target if count else None, rows),
        "weight": (call.weight, classes),
        "upstream": (None if call.reduction else call.upstream, rows),
    }
    for name, (tensor, size) in numbers.items():
        if tensor is not None and (tensor.dim() > 1 or tensor.numel() != size):
            checks.refuse(name, f"have shape ({size},)", tensor)
    return INPUT_GRADIENT


FAMILIES: dict[Family, Callable[[Checks, Arguments], int]] = {
    "pointwise": _check_pointwise,
    "vectors": _check_vectors,
    "softmax": _check_softmax,
    "class_margin": _check_class_margin,
}
"""The check of each family."""

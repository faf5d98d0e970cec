"""What operators refuse: calls whose arguments do not fit together, in words that name them.

The dispatcher calls an operator with whatever it is given. The compiled kernels check for themselves, in the
same words (`csrc/loss_operators.h` and the files `csrc/*_call.h`); this is for the kernels in Triton and for
fake tensors. What depends on memory, which fake tensors have none of, is in
`fused_losses.triton_kernels.memory_checks`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from fused_losses.call import Parameters, PointwiseOptions, SoftmaxOptions
from fused_losses.registry import (
    ARGMAX,
    EXTRA_GRADIENT,
    INPUT_GRADIENT,
    STATISTICS,
    TARGET_GRADIENT,
    Loss,
)
from fused_losses.shapes import broadcast

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_FLOATING_NAMES = "float32, float64, bfloat16 or float16"

MOST_ELEMENTS = 2**60
"""More than this have more than 2^63 bytes, if they are of 8 bytes."""

MOST_DIMS = 64
"""Dimensions of a tensor, as torch's own iterators have them."""

_REDUCTIONS = ("0 (none)", "1 (mean)", "2 (sum)", "3 (batchmean)")
_BITS = {
    INPUT_GRADIENT: "input",
    TARGET_GRADIENT: "target",
    EXTRA_GRADIENT: "extra",
    STATISTICS: "statistics",
    ARGMAX: "argmax",
}


@dataclass(frozen=True)
class Checks:
    """Checks of an operator's arguments, which raise RuntimeError for one that the kernels do not take."""

    loss: str
    """What its errors begin with."""

    def refuse(self, argument: str, expected: str, found: object) -> NoReturn:
        """Raises the error: the argument must be as expected, but it is as found."""
        if isinstance(found, Tensor):
            found = describe(found)
        raise RuntimeError(f"{self.loss}: {argument} must {expected}, but it is {found}")

    def devices(self, tensors: dict[str, Tensor | None]) -> None:
        """All on the first one's device: the dispatcher looks at one alone."""
        (first, one), *others = tensors.items()
        if one is None:
            self.refuse(first, "be a tensor", None)
        for name, tensor in others:
            if tensor is not None and tensor.device != one.device:
                self.refuse(name, f"be on the same device as {first}, {one.device}", f"on {tensor.device}")
        for name, tensor in tensors.items():
            if tensor is not None and tensor.dim() > MOST_DIMS:
                self.refuse(name, f"have at most {MOST_DIMS} dimensions", tensor)

    def floating(self, **tensors: Tensor | None) -> None:
        """Of one of the four dtypes; those that are None are passed over."""
        for name, tensor in tensors.items():
            if tensor is not None and tensor.dtype not in FLOATING:
                self.refuse(name, f"be {_FLOATING_NAMES}", tensor)

    def shape(self, shape: Sequence[int], **tensors: Tensor | None) -> None:
        """Of a shape; those that are None are passed over."""
        for name, tensor in tensors.items():
            if tensor is not None and tuple(tensor.shape) != tuple(shape):
                self.refuse(name, f"have shape {tuple(shape)}", tensor)

    def absent(self, **tensors: Tensor | None) -> None:
        """None."""
        for name, tensor in tensors.items():
            if tensor is not None:
                self.refuse(name, "be None", tensor)

    def present(self, **tensors: Tensor | None) -> None:
        """Not None."""
        for name, tensor in tensors.items():
            if tensor is None:
                self.refuse(name, "be a tensor", None)

    def parameters(self, parameters: Sequence[float], count: int) -> None:
        """As many as the loss takes."""
        if len(parameters) != count:
            self.refuse("parameters", f"hold as many numbers as the loss takes, {count}", len(parameters))

    def broadcast(self, **operands: Tensor | None) -> torch.Size:
        """The shape that operands broadcast to, in the order in which they are given."""
        given = {name: x for name, x in operands.items() if x is not None}
        try:
            shape = broadcast(*given.values())
        except RuntimeError:
            name, tensor = list(given.items())[-1]
            others = dict(list(given.items())[:-1])
            before = self.broadcast(**others)
            self.refuse(name, f"broadcast with shape {tuple(before)} of those before it", tensor)
        # Sizes of fake tensors may be symbols, and torch's own product overflows silently.
        if all(type(size) is int for size in shape) and math.prod(shape) > MOST_ELEMENTS:
            self.refuse("input", "have, broadcast with the others, at most 2^60 elements", f"{tuple(shape)}")
        return shape

    def spans(self, shape: torch.Size, **factors: Tensor | None) -> None:
        """Broadcasts to a shape."""
        for name, factor in factors.items():
            if factor is None or factor.shape == shape:
                continue
            try:
                fits = torch.broadcast_shapes(shape, factor.shape) == shape
            except RuntimeError:
                fits = False
            if not fits:
                self.refuse(name, f"broadcast to shape {tuple(shape)}", factor)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def describe(tensor: Tensor) -> str:
    """A tensor's dtype and shape, for messages: "float32 of shape (6, 10)"."""
    return f"{_name(tensor.dtype)} of shape {tuple(tensor.shape)}"


@dataclass(frozen=True)
class Arguments:
    """The arguments that the four operators of a loss share."""

    loss: Loss
    input: Tensor
    target: Tensor
    weight: Tensor | None
    extra: Tensor | None
    options: Any
    """The options of the loss's family, by name."""
    reduction: int
    gradients: int
    upstream: Tensor | None = None

    @property
    def tensors(self) -> dict[str, Tensor | None]:
        """What is read, by the names of the operator's schema."""
        named = {
            "input": self.input,
            "target": self.target,
            "weight": self.weight,
            "extra": self.extra,
            "upstream": self.upstream,
        }
        if self.loss.family == "softmax":
            named |= {"normalizer": self.options.normalizer, "lse_gradient": self.options.lse_gradient}
        return named


def check_forward(loss: Loss, *arguments: Any) -> Arguments:
    """Checks a call of NAME or NAME_."""
    *shared, dtype, gradients = arguments
    call = _arguments(loss, shared, gradients, None)
    checks = Checks(loss.name)
    checks.devices(call.tensors)
    if dtype is not None and dtype not in FLOATING:
        checks.refuse("dtype", f"be {_FLOATING_NAMES} or None", _name(dtype))
    if loss.has_statistics:
        checks.absent(extra=call.extra)  # what the forward keeps is for the backward
    _check(checks, call, STATISTICS | ARGMAX if loss.has_statistics else 0)
    return call


def check_backward(loss: Loss, upstream: Tensor, *arguments: Any) -> Arguments:
    """Checks a call of NAME_backward, and all but the first two arguments of one of NAME_backward_."""
    *shared, gradients = arguments
    call = _arguments(loss, shared, gradients, upstream)
    checks = Checks(loss.name)
    checks.devices(call.tensors)
    checks.present(upstream=upstream)
    checks.floating(upstream=upstream)
    if call.reduction and upstream.numel() != 1:
        checks.refuse("upstream", "be one number, as the loss is", upstream)
    _check(checks, call, 0)
    return call


def check_scale(gradient: Tensor, factor: Tensor) -> None:
    """Checks a call of scale_."""
    checks = Checks("scale_")
    checks.devices({"gradient": gradient, "factor": factor})
    checks.present(factor=factor)
    checks.floating(gradient=gradient, factor=factor)
    if factor.numel() != 1:
        checks.refuse("factor", "be one number", factor)
    if gradient.numel() and not torch.ops.aten.is_non_overlapping_and_dense(gradient):
        checks.refuse("gradient", "be dense in memory", gradient)


_OPTIONS = {
    "pointwise": PointwiseOptions,
    "vectors": Parameters,
    "softmax": SoftmaxOptions,
    "class_margin": Parameters,
}


def _arguments(loss: Loss, shared: list[Any], gradients: int, upstream: Tensor | None) -> Arguments:
    input, target, weight, extra, *options, reduction = shared
    made = _OPTIONS[loss.family](*options)
    return Arguments(loss, input, target, weight, extra, made, reduction, gradients, upstream)


def _check(checks: Checks, call: Arguments, more_bits: int) -> None:
    checks.present(target=call.target)
    batch_mean = call.loss.family == "pointwise"
    if call.reduction not in range(3 + batch_mean):
        checks.refuse("reduction", f"be one of {', '.join(_REDUCTIONS[: 3 + batch_mean])}", call.reduction)
    checks.floating(input=call.input)
    known = _FAMILIES[call.loss.family](checks, call) | more_bits
    if call.gradients & ~known:
        names = ", ".join(f"{bit} ({name})" for bit, name in _BITS.items() if known & bit)
        checks.refuse("gradients", f"be a sum of some of {names}", call.gradients)


def _check_pointwise(checks: Checks, call: Arguments) -> int:
    checks.floating(target=call.target, extra=call.extra, weight=call.weight)
    if call.loss.differentiable & EXTRA_GRADIENT:
        checks.present(extra=call.extra)
    elif not call.loss.optional_extra:
        checks.absent(extra=call.extra)
    shape = checks.broadcast(input=call.input, target=call.target, extra=call.extra)
    checks.spans(shape, weight=call.weight)
    checks.parameters(call.options.parameters, len(call.loss.parameters))
    if call.options.ignore_index is not None and "ignore_index" not in call.loss.extensions:
        checks.refuse("ignore_index", "be None", call.options.ignore_index)
    if not call.reduction:
        checks.shape(shape, upstream=call.upstream)
    return call.loss.differentiable


def _check_vectors(checks: Checks, call: Arguments) -> int:
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
    ignore_index, label_smoothing, terms, normalizer, lse_gradient = call.options
    input, target, has_softmax = call.input, call.target, call.loss.has_statistics
    if input.dim() == 0 or input.shape[min(1, input.dim() - 1)] == 0:
        checks.refuse("input", "have shape (N, C, ...) or (C,), of one class or more", input)
    positions = input.shape[:1] + input.shape[2:] if input.dim() > 1 else input.shape[:0]
    if not 0 <= label_smoothing <= has_softmax:
        checks.refuse("label_smoothing", "be between 0 and 1" if has_softmax else "be 0", label_smoothing)
    if len(terms) not in ((0, 4) if has_softmax else (0,)):
        checks.refuse("terms", "hold no or four numbers" if has_softmax else "hold no numbers", len(terms))
    has_labels = target.dtype in (torch.int64, torch.uint8)
    _check_target(checks, input, target, positions, has_labels, has_softmax)
    if not has_labels and ignore_index >= 0:
        checks.refuse("ignore_index", "be negative, since the target holds probabilities", ignore_index)
    checks.floating(weight=call.weight, lse_gradient=lse_gradient)
    checks.shape(input.shape[min(1, input.dim() - 1) :][:1], weight=call.weight)
    if normalizer is not None and (normalizer.dim() or normalizer.dtype is not torch.float64):
        checks.refuse("normalizer", "be float64 without dimensions", normalizer)
    if not has_softmax:
        checks.absent(extra=call.extra, lse_gradient=lse_gradient)
    checks.shape(positions, lse_gradient=lse_gradient)
    if call.extra is not None:
        _check_statistics(checks, input, call.extra, 3 if terms and terms[1] else 2, positions.numel())
    if not call.reduction:
        checks.shape(positions, upstream=call.upstream)
    return INPUT_GRADIENT if has_labels else INPUT_GRADIENT | TARGET_GRADIENT


def _check_target(
    checks: Checks, input: Tensor, target: Tensor, positions: torch.Size, has_labels: bool, has_softmax: bool
) -> None:
    is_double = input.dtype is torch.float64
    if has_labels:
        fits = target.shape == positions
    else:
        fits = has_softmax and target.dtype in FLOATING and (target.dtype is torch.float64) == is_double
        fits = fits and target.shape == input.shape
    if not fits:
        expected = f"be int64 or uint8 class indices of shape {tuple(positions)}"
        if has_softmax:
            dtypes = "float64" if is_double else "float32, bfloat16 or float16"
            expected += f", or {dtypes} probabilities of shape {tuple(input.shape)}"
        checks.refuse("target", expected, target)


def _check_statistics(checks: Checks, input: Tensor, statistics: Tensor, numbers: int, rows: int) -> None:
    dtype = torch.float64 if input.dtype is torch.float64 else torch.float32
    shape = (numbers, rows)
    if statistics.dtype is not dtype or statistics.shape != shape or not statistics.is_contiguous():
        expected = f"be the statistics of this input, {_name(dtype)} of shape {shape} and contiguous"
        checks.refuse("extra", expected, statistics)


def _check_class_margin(checks: Checks, call: Arguments) -> int:
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


_FAMILIES = {
    "pointwise": _check_pointwise,
    "vectors": _check_vectors,
    "softmax": _check_softmax,
    "class_margin": _check_class_margin,
}
"""The checks of a family, which return the bits of the gradients that there are."""

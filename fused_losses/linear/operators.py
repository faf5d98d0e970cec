"""The operators `torch.ops.fused_losses.linear_loss` and `linear_loss_backward`: the loop over chunks.

    linear_loss           loss, what its sum was multiplied by, and as asked for, log-sum-exps, largest
                          classes and gradients of the sum
    linear_loss_backward  gradients, for an upstream gradient

The gradients of the first are those of the sum of all losses, in float32 (float64 for float64): whoever
multiplies them by the second result and the upstream gradient rounds once. A loss's name, tensors and options
are those of its function in `fused_losses.functional`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from fused_losses.dispatch import REDUCTION_CODES
from fused_losses.linear import chunks
from fused_losses.linear.planning import Operands, Plan, plan
from fused_losses.linear.products import Products
from fused_losses.ops import OPERATORS
from fused_losses.registry import ARGMAX, INPUT_GRADIENT, LOSSES, STATISTICS

OF_INPUT, OF_WEIGHT, OF_BIAS, LSE, LARGEST = 1, 2, 4, 8, 16
"""Bits of what the operators are asked for: gradients, and of a softmax's rows the log-sum-exp and the
largest class."""
GRADIENTS = OF_INPUT | OF_WEIGHT | OF_BIAS

_CALL = (
    "Tensor input, Tensor linear_weight, Tensor? linear_bias, str loss, str[] tensor_names, "
    "Tensor[] tensors, str[] option_names, Scalar[] options, str reduction, ScalarType dtype, "
    "ScalarType logits_dtype, int rows"
)

_library = torch.library.Library("fused_losses", "FRAGMENT")


@dataclass(frozen=True)
class Call:
    """The arguments that both operators share; input is (N, D), linear_weight (V, D) or (C, d1, ..., D)."""

    input: Tensor
    linear_weight: Tensor
    linear_bias: Tensor | None
    loss: str
    tensor_names: list[str]
    tensors: list[Tensor]
    option_names: list[str]
    options: list[Any]
    reduction: str
    dtype: torch.dtype
    """The loss's."""
    logits_dtype: torch.dtype
    """The workspace's."""
    rows: int
    """At a time."""

    def plan(self) -> Plan | None:
        """Which kernel runs; None where none takes such a call."""
        shape = self.input.shape[:1] + self.linear_weight.shape[:-1]
        return plan(
            self.loss,
            (shape, self.logits_dtype, self.input.device),
            **dict(zip(self.tensor_names, map(self._as_logits, self.tensors), strict=True)),
            **dict(zip(self.option_names, self.options, strict=True)),
            reduction=self.reduction,
        )

    def losses_shape(self) -> torch.Size:
        """Of the losses of reduction="none"."""
        rows, classes = self.input.shape[:1], self.linear_weight.shape[:-1]
        family = LOSSES[self.loss].family
        if family == "pointwise":
            shape: torch.Size = torch.broadcast_shapes(rows + classes, *(x.shape for x in self.tensors))
            return shape
        return rows + classes[1:] if family == "softmax" else rows

    def _as_logits(self, operand: Tensor) -> Tensor:
        """Weights of classes in the logits' dtype; what is as large as logits stays as it is."""
        small = operand.is_floating_point() and operand.dim() == 1
        return operand.to(self.logits_dtype) if small else operand


def is_taken(head: tuple[Tensor, Tensor, Tensor | None], tensors: list[Tensor], *call: Any) -> bool:
    """Whether there is a kernel for a call, which yields the losses of rows or elements themselves."""
    loss, names, *rest = call
    found = Call(*head, loss, names, tensors, *rest).plan()
    # Rows of a mean of elements, made by their function after the kernel.
    summed_later = loss == "multilabel_soft_margin_loss" and "none" in rest
    return found is not None and not summed_later


class _Loop:
    """Of a call, chunk by chunk: logits, then what a kernel makes of them, then gradients."""

    def __init__(self, call: Call, wanted: int) -> None:
        found = call.plan()
        assert found is not None
        self.plan = found
        self.call, self.wanted, self.dtype = call, wanted, call.logits_dtype
        self.wide = torch.float64 if self.dtype is torch.float64 else torch.float32
        self.operators = OPERATORS[self.plan.name]
        self.none = call.reduction == "none"
        self.reduction = REDUCTION_CODES["none" if self.none else "sum"]
        weight = call.linear_weight.reshape(-1, call.linear_weight.shape[-1])
        bias = None if call.linear_bias is None else call.linear_bias.reshape(-1)
        bits = (bool(wanted & bit) for bit in (OF_INPUT, OF_WEIGHT, OF_BIAS))
        self.products = Products(weight, bias, self.dtype, *bits)
        self.input_gradient = (
            call.input.new_zeros(call.input.shape, dtype=self.wide) if wanted & OF_INPUT else None
        )
        self.rows = chunks.Rows.of(self.plan)
        self.at_once = min(call.rows, max(1, self.rows.total))
        self.logits = call.input.new_empty((self.at_once, weight.shape[0]), dtype=self.dtype)

    def run(self, kernel: Callable[[slice | Tensor, Tensor, Operands], None]) -> list[Tensor]:
        """Calls kernel(rows, logits, operands), which turns logits into their gradient if one is wanted."""
        for rows in self.rows.chunks(self.at_once):
            x = chunks.take(self.call.input, rows).to(self.dtype)
            logits = self.logits[: x.shape[0]]
            self.products.logits(x, logits)
            shaped = logits.view(x.shape[0], *self.call.linear_weight.shape[:-1])
            kernel(rows, shaped, self.plan.operands(rows))
            if self.wanted & GRADIENTS:
                of_x = self.products.gradients(logits, x)
                if self.input_gradient is not None and of_x is not None:
                    chunks.put(self.input_gradient, rows, of_x)
        found = (self.input_gradient, self.products.weight_gradient, self.products.bias_gradient)
        like = (None, self.call.linear_weight, self.call.linear_bias)
        return [
            x if as_ is None else x.view(as_.shape)
            for x, as_ in zip(found, like, strict=True)
            if x is not None
        ]


def _forward(*arguments: Any) -> list[Tensor]:
    call, wanted = Call(*arguments[:-1]), arguments[-1]
    loop = _Loop(call, wanted)
    options = loop.plan.options_of_sum
    run = loop.operators.forward_inplace if wanted & GRADIENTS else loop.operators.forward
    bits = INPUT_GRADIENT if wanted & GRADIENTS else 0
    bits |= (STATISTICS if wanted & LSE else 0) | (ARGMAX if wanted & LARGEST else 0)
    total = call.input.new_zeros((), dtype=torch.float64)
    losses = call.input.new_zeros(call.losses_shape(), dtype=call.dtype) if loop.none else None
    found = _rows(call, wanted)

    def kernel(rows: slice | Tensor, logits: Tensor, operands: Operands) -> None:
        loss, *of_rows = run(logits, *operands, *options, loop.reduction, loop.wide, bits)
        if wanted & LSE:
            of_rows[0] = (of_rows[0][0] + of_rows[0][1].log()).view(-1, *found[0].shape[1:])
        for into, values in zip(found, of_rows, strict=False):
            chunks.put(into, rows, values)
        if losses is None:
            total.add_(loss)
        else:
            chunks.put(losses, rows, loss)

    gradients = loop.run(kernel)
    if losses is not None:
        return [losses, torch.ones_like(total), *found, *gradients]
    scale = 1 / loop.plan.divisor()
    return [(total * scale).to(call.dtype), scale, *found, *gradients]


def _rows(call: Call, wanted: int) -> list[Tensor]:
    """Where log-sum-exps and largest classes go; as they are for rows that do not count."""
    if not wanted & (LSE | LARGEST):
        return []
    shape = call.input.shape[:1] + call.linear_weight.shape[1:-1]
    wide = torch.float64 if call.logits_dtype is torch.float64 else torch.float32
    lse = call.input.new_zeros(shape, dtype=wide)
    return [lse, call.input.new_full(shape, -1, dtype=torch.int64)] if wanted & LARGEST else [lse]


def _backward(upstream: Tensor, lse_gradient: Tensor | None, *arguments: Any) -> list[Tensor]:
    call, wanted = Call(*arguments[:-1]), arguments[-1]
    loop = _Loop(call, wanted)
    options = loop.plan.options_of_sum
    factor = upstream if loop.none else upstream.double() / loop.plan.divisor()
    # If that will do, after the products: float16 has no room for 1 / N times a logit's gradient.
    later = not loop.none and lse_gradient is None
    whole = upstream.new_ones((), dtype=loop.wide) if later else factor.to(loop.wide)

    def kernel(rows: slice | Tensor, logits: Tensor, operands: Operands) -> None:
        of_losses = chunks.take(whole, rows).contiguous() if loop.none else whole
        given = options
        if lse_gradient is not None:
            given = (*options[:-1], chunks.take(lse_gradient, rows))
        loop.operators.backward_into(
            [logits], False, of_losses, logits, *operands, *given, loop.reduction, INPUT_GRADIENT
        )

    gradients = loop.run(kernel)
    if later:
        for gradient in gradients:
            gradient.mul_(factor)
    return gradients


def _as_operator(function: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
    """On the tensors' device, and without autocast, which would cast what the products write to."""

    @functools.wraps(function)
    def run(*arguments: Any) -> list[Tensor]:
        first = arguments[0]
        with torch.cuda.device_of(first), torch.autocast(first.device.type, enabled=False):
            return function(*arguments)

    return run


def _fake_gradients(call: Call, wanted: int) -> list[Tensor]:
    wide = torch.float64 if call.logits_dtype is torch.float64 else torch.float32
    of = ((OF_INPUT, call.input), (OF_WEIGHT, call.linear_weight), (OF_BIAS, call.linear_bias))
    return [call.input.new_empty(x.shape, dtype=wide) for bit, x in of if wanted & bit and x is not None]


def _fake_forward(*arguments: Any) -> list[Tensor]:
    call, wanted = Call(*arguments[:-1]), arguments[-1]
    shape = call.losses_shape() if call.reduction == "none" else ()
    scale = call.input.new_empty((), dtype=torch.float64)
    loss = call.input.new_empty(shape, dtype=call.dtype)
    return [loss, scale, *_rows(call, wanted), *_fake_gradients(call, wanted)]


def _fake_backward(upstream: Tensor, lse_gradient: Tensor | None, *arguments: Any) -> list[Tensor]:
    return _fake_gradients(Call(*arguments[:-1]), arguments[-1])


def _define(
    schema: str, function: Callable[..., list[Tensor]], fake: Callable[..., list[Tensor]]
) -> OpOverload[Any, Any]:
    name = schema.split("(")[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, _as_operator(function), "CompositeExplicitAutograd")
    torch.library.register_fake(f"fused_losses::{name}", fake, lib=_library)
    operator: OpOverload[Any, Any] = getattr(torch.ops.fused_losses, name).default
    return operator


linear_loss = _define(f"linear_loss({_CALL}, int wanted) -> Tensor[]", _forward, _fake_forward)
linear_loss_backward = _define(
    f"linear_loss_backward(Tensor upstream, Tensor? lse_gradient, {_CALL}, int gradients) -> Tensor[]",
    _backward,
    _fake_backward,
)

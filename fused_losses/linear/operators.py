"""The operators `torch.ops.fused_losses.linear_loss` and `linear_loss_backward`.

    linear_loss           loss, what its sum was multiplied by, and as asked for, log-sum-exps, largest
                          classes and gradients of the sum; with gradients, `Counted`, unless all counts
    linear_loss_backward  gradients, for an upstream gradient

The gradients of the first are those of the sum of all losses, in float32 (float64 for float64): whoever
multiplies them by the second result and the upstream gradient rounds once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from fused_losses.call import Options, Parameters, Reduction, SoftmaxOptions, accumulate_dtype
from fused_losses.divisors import divisor
from fused_losses.linear import chunks
from fused_losses.linear.counted import Counted, counted, may_leave_out, scaled
from fused_losses.linear.head import HeadCall
from fused_losses.linear.loop import Kernel, over_chunks
from fused_losses.ops import OPERATORS
from fused_losses.registry import ARGMAX, INPUT_GRADIENT, LOSSES, STATISTICS
from fused_losses.shapes import losses_shape, positions

HEAD_INPUT, HEAD_WEIGHT, HEAD_BIAS, LSE, LARGEST = 1, 2, 4, 8, 16
"""Bits of what the operators are asked for: gradients, and of a softmax's rows the log-sum-exp and the
largest class."""
GRADIENTS = HEAD_INPUT | HEAD_WEIGHT | HEAD_BIAS

_ARGUMENTS = (
    "Tensor input, Tensor linear_weight, Tensor? linear_bias, str loss, Tensor target, Tensor? weight, "
    "Tensor? extra, float[] parameters, Scalar? ignore_index, float label_smoothing, float[] terms, "
    "Tensor? normalizer, int reduction, ScalarType dtype, ScalarType logits_dtype, int chunk_rows"
)
"""Those of `HeadCall.to_arguments`."""

_library = torch.library.Library("fused_losses", "FRAGMENT")


def _forward(*arguments: Any) -> list[Tensor]:
    """The operator linear_loss: arguments are those of `HeadCall.to_arguments`, and a sum of bits."""
    head_call, wanted = HeadCall.from_arguments(*arguments[:-1]), arguments[-1]
    call, input = head_call.call, head_call.head.input
    operators, family = OPERATORS[call.name], LOSSES[call.name].family
    run = operators.forward_inplace if wanted & GRADIENTS else operators.forward
    bits = INPUT_GRADIENT if wanted & GRADIENTS else 0
    bits |= (STATISTICS if wanted & LSE else 0) | (ARGMAX if wanted & LARGEST else 0)
    losses = None
    if call.reduction == Reduction.NONE:
        losses = input.new_zeros(losses_shape(family, *call.operands), dtype=head_call.dtype)
    reduction = Reduction.SUM if losses is None else Reduction.NONE
    options, dtype = _without_normalizer(call.options), accumulate_dtype(head_call.logits_dtype)
    total = input.new_zeros((), dtype=torch.float64)
    row_results = _row_results(head_call, wanted)

    def kernel(rows: slice | Tensor, logits: Tensor) -> None:
        operands = chunks.operands_of_rows(call, rows)
        loss, *found = run(logits, *operands, *options, reduction, dtype, bits)
        if wanted & LSE:
            found[0] = (found[0][0] + found[0][1].log()).view(positions(logits))
        for into, values in zip(row_results, found, strict=False):
            chunks.put(into, rows, values)
        if losses is None:
            total.add_(loss)
        else:
            chunks.put(losses, rows, loss)

    gradients = _present(_over_rows(head_call, wanted, kernel))
    counts = _counted(head_call) if gradients else None
    if losses is not None:
        return [losses, torch.ones_like(total), *row_results, *gradients, *(counts or ())]
    scale = 1 / divisor(call)
    return [(total * scale).to(head_call.dtype), scale, *row_results, *gradients, *(counts or ())]


def _backward(upstream: Tensor, lse_gradient: Tensor | None, *arguments: Any) -> list[Tensor]:
    """The operator linear_loss_backward, given the gradients of the loss, () or (N, d1, ...), and of lse."""
    head_call, wanted = HeadCall.from_arguments(*arguments[:-1]), arguments[-1]
    call = head_call.call
    operators, options = OPERATORS[call.name], _without_normalizer(call.options)
    by_row = call.reduction == Reduction.NONE
    factor = upstream if by_row else upstream.double() / divisor(call)
    # After the products where that is possible: in float16, 1 / N times a logit's gradient may underflow.
    multiply_later = not by_row and lse_gradient is None
    dtype = accumulate_dtype(head_call.logits_dtype)
    loss_gradient = upstream.new_ones((), dtype=dtype) if multiply_later else factor.to(dtype)

    def kernel(rows: slice | Tensor, logits: Tensor) -> None:
        chunk_gradient = chunks.take(loss_gradient, rows).contiguous() if by_row else loss_gradient
        given = options
        if lse_gradient is not None and isinstance(options, SoftmaxOptions):
            given = options._replace(lse_gradient=chunks.take(lse_gradient, rows))
        operands = chunks.operands_of_rows(call, rows)
        reduction = Reduction.NONE if by_row else Reduction.SUM
        operators.backward_into(
            [logits], False, chunk_gradient, logits, *operands, *given, reduction, INPUT_GRADIENT
        )

    gradients = _over_rows(head_call, wanted, kernel)
    if multiply_later:
        gradients = scaled(gradients, factor, _counted(head_call), in_place=True)
    return _present(gradients)


def _counted(head_call: HeadCall) -> Counted | None:
    """What has losses that count; None where everything has."""
    return counted(head_call.call, head_call.chunk_rows) if may_leave_out(head_call.call) else None


def _present(gradients: list[Tensor | None]) -> list[Tensor]:
    return [gradient for gradient in gradients if gradient is not None]


def _over_rows(head_call: HeadCall, wanted: int, kernel: Kernel) -> list[Tensor | None]:
    """Runs a kernel over all rows that count; the gradients of input, weight and bias, None if not wanted."""
    rows = chunks.Rows.that_count(head_call.call)
    chunk_rows = min(head_call.chunk_rows, max(1, rows.total))
    return over_chunks(
        head_call.head,
        rows.chunks(chunk_rows),
        chunk_rows,
        head_call.logits_dtype,
        (bool(wanted & HEAD_INPUT), bool(wanted & HEAD_WEIGHT), bool(wanted & HEAD_BIAS)),
        kernel,
    )


def _without_normalizer(options: Options) -> Options:
    """The options of a kernel that only adds up losses, without what the mean divides by."""
    return options if isinstance(options, Parameters) else options._replace(normalizer=None)


def _row_results(head_call: HeadCall, wanted: int) -> list[Tensor]:
    """Memory for log-sum-exps and largest classes (N, d1, ...), filled as for rows that do not count."""
    if not wanted & (LSE | LARGEST):
        return []
    input = head_call.call.input
    lse = head_call.head.input.new_zeros(positions(input), dtype=accumulate_dtype(input.dtype))
    return [lse, lse.new_full(lse.shape, -1, dtype=torch.int64)] if wanted & LARGEST else [lse]


def _as_operator(function: Callable[..., list[Tensor]]) -> Callable[..., list[Tensor]]:
    """The function, on the tensors' device and without autocast, which would cast what products write to."""

    @functools.wraps(function)
    def run(*arguments: Any) -> list[Tensor]:
        first = arguments[0]
        with torch.cuda.device_of(first), torch.autocast(first.device.type, enabled=False):
            return function(*arguments)

    return run


def _fake_gradients(head_call: HeadCall, wanted: int) -> list[Tensor]:
    input, weight, bias = head_call.head
    dtype = accumulate_dtype(head_call.logits_dtype)
    operands = ((HEAD_INPUT, input), (HEAD_WEIGHT, weight), (HEAD_BIAS, bias))
    return [input.new_empty(x.shape, dtype=dtype) for bit, x in operands if wanted & bit and x is not None]


def _fake_forward(*arguments: Any) -> list[Tensor]:
    head_call, wanted = HeadCall.from_arguments(*arguments[:-1]), arguments[-1]
    call, input = head_call.call, head_call.head.input
    shape: Any = ()
    if call.reduction == Reduction.NONE:
        shape = losses_shape(LOSSES[call.name].family, *call.operands)
    scale = input.new_empty((), dtype=torch.float64)
    loss = input.new_empty(shape, dtype=head_call.dtype)
    gradients = _fake_gradients(head_call, wanted)
    counts: tuple[Tensor, ...] = ()
    if gradients and may_leave_out(call):
        by_row = isinstance(call.options, SoftmaxOptions)
        of_classes = (1, *call.target.shape[1:]) if by_row else call.input.shape[1:]
        counts = tuple(input.new_empty(shape, dtype=torch.bool) for shape in (input.shape[:1], of_classes))
    return [loss, scale, *_row_results(head_call, wanted), *gradients, *counts]


def _fake_backward(upstream: Tensor, lse_gradient: Tensor | None, *arguments: Any) -> list[Tensor]:
    return _fake_gradients(HeadCall.from_arguments(*arguments[:-1]), arguments[-1])


def _define(
    schema: str, function: Callable[..., list[Tensor]], fake: Callable[..., list[Tensor]]
) -> OpOverload[Any, Any]:
    name = schema.split("(")[0]
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, _as_operator(function), "CompositeExplicitAutograd")
    torch.library.register_fake(f"fused_losses::{name}", fake, lib=_library)
    operator: OpOverload[Any, Any] = getattr(torch.ops.fused_losses, name).default
    return operator


linear_loss = _define(f"linear_loss({_ARGUMENTS}, int wanted) -> Tensor[]", _forward, _fake_forward)
linear_loss_backward = _define(
    f"linear_loss_backward(Tensor upstream, Tensor? lse_gradient, {_ARGUMENTS}, int wanted) -> Tensor[]",
    _backward,
    _fake_backward,
)

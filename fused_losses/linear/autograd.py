"""The backward contract of a loss over a linear head.

fused      the forward makes the gradients of the summed losses, in float32; the first backward multiplies
           them by the upstream gradient and the mean's factor, rounds once, and hands them out; a later
           one recomputes
recompute  the forward makes the loss only, one matrix product; the backward makes the logits again
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import Function

from fused_losses import devices, modes, reference
from fused_losses.autograd import take_gradients
from fused_losses.call import REDUCTION_NAMES, Reduction, SoftmaxOptions
from fused_losses.linear.composition import logits_of
from fused_losses.linear.counted import Counted, scaled
from fused_losses.linear.head import HeadCall
from fused_losses.linear.operators import (
    HEAD_BIAS,
    HEAD_INPUT,
    HEAD_WEIGHT,
    LARGEST,
    linear_loss,
    linear_loss_backward,
)
from fused_losses.registry import LOSSES

Strategy = Literal["fused", "recompute"]

_BITS = (HEAD_INPUT, HEAD_WEIGHT, HEAD_BIAS)


class LinearLoss(Function):
    """A loss over a linear head and results of its rows; the gradients of input, weight and bias."""

    @staticmethod
    def forward(ctx: Any, strategy: Strategy, row_bits: int, *arguments: Any) -> tuple[Tensor, ...]:
        """The loss, and by the bits of `row_bits`, lse and argmax; arguments are `HeadCall.to_arguments`."""
        needed = ctx.needs_input_grad[2:5]
        wanted = sum(bit for bit, is_needed in zip(_BITS, needed, strict=True) if is_needed)
        in_forward = wanted if strategy == "fused" else 0
        loss, scale, *rest = linear_loss(*arguments, in_forward | row_bits)
        count = row_bits.bit_count()
        row_results, rest = rest[:count], rest[count:]
        gradients, counts = rest[: in_forward.bit_count()], rest[in_forward.bit_count() :]
        if row_bits & LARGEST:
            ctx.mark_non_differentiable(row_results[1])
        ctx.set_materialize_grads(False)
        ready = scale, gradients, Counted(*counts) if counts else None
        ctx.gradients = [ready] if strategy == "fused" else None
        ctx.wanted = wanted
        ctx.dtypes = tuple(x.dtype if isinstance(x, Tensor) else None for x in arguments[:3])
        ctx.backend = devices.preferred()
        # Tensors are saved where autograd sees them, and their places are kept with the other arguments.
        ctx.save_for_backward(*(x for x in arguments if isinstance(x, Tensor)))
        ctx.arguments = tuple(_Saved if isinstance(x, Tensor) else x for x in arguments)
        return loss, *row_results

    @staticmethod
    def backward(
        ctx: Any, upstream: Tensor | None, *row_gradients: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """The gradients of the head's operands, where they are needed, each shaped as its operand."""
        lse_gradient = row_gradients[0] if row_gradients else None
        nothing = (None,) * (2 + len(ctx.arguments))
        if upstream is None and lse_gradient is None:
            return nothing
        gradients = None
        if upstream is not None and lse_gradient is None:
            gradients = _stored_gradients(ctx, upstream)
        if gradients is None:
            # Operands are asked for only here: whoever has the stored gradients may have changed them.
            gradients = _computed_gradients(ctx, upstream, lse_gradient)
        head_gradients = (
            None if gradient is None else gradient.to(dtype)
            for gradient, dtype in zip(_by_operand(gradients, ctx.wanted), ctx.dtypes, strict=True)
        )
        return None, None, *head_gradients, *nothing[5:]


class _Saved:
    """Stands for an argument that autograd has saved."""


def _stored_gradients(ctx: Any, upstream: Tensor) -> list[Tensor] | None:
    """The wanted gradients that the forward made, times upstream; None if there are none to be had."""
    if torch.is_grad_enabled() or modes.is_batched(upstream) or ctx.gradients is None:
        return None
    in_place = not modes.is_compiling()  # a compiler decides that itself
    ready = take_gradients(ctx) if in_place else ctx.gradients[0]
    if ready is None:
        return None
    scale, gradients, counts = ready
    made = scaled(_by_operand(gradients, ctx.wanted), scale * upstream, counts, in_place)
    return [gradient for gradient in made if gradient is not None]


def _computed_gradients(ctx: Any, upstream: Tensor | None, lse_gradient: Tensor | None) -> list[Tensor]:
    """The wanted gradients, computed from the operands."""
    saved = iter(ctx.saved_tensors)  # once: checkpointing unpacks no tensor twice
    head_call = HeadCall.from_arguments(*(next(saved) if x is _Saved else x for x in ctx.arguments))
    if upstream is None:
        assert lse_gradient is not None
        by_row = head_call.call.reduction == Reduction.NONE
        upstream = lse_gradient.new_zeros(lse_gradient.shape if by_row else ())
        if not by_row:
            # A sum divides by 1. A mean may divide by 0, and 0 / 0 would reach the gradient of lse.
            head_call = replace(head_call, call=replace(head_call.call, reduction=Reduction.SUM))
    if torch.is_grad_enabled() or modes.is_batched(upstream):
        return _gradients_by_torch(head_call, ctx.wanted, upstream, lse_gradient)
    arguments = head_call.to_arguments()
    with modes.prefer(ctx.backend):
        gradients: list[Tensor] = linear_loss_backward(upstream, lse_gradient, *arguments, ctx.wanted)
    return gradients


def _by_operand(gradients: list[Tensor], wanted: int) -> list[Tensor | None]:
    """The gradients of input, weight and bias, given those that are wanted, in this order."""
    remaining = iter(gradients)
    return [next(remaining) if wanted & bit else None for bit in _BITS]


def _gradients_by_torch(
    head_call: HeadCall, wanted: int, upstream: Tensor, lse_gradient: Tensor | None
) -> list[Tensor]:
    """The gradients through torch's own operators and all logits, which autograd and vmap can see through."""
    call, create_graph = head_call.call, torch.is_grad_enabled()
    target = call.target.to_dense() if call.target.is_sparse else call.target
    extra = call.extra.to_dense() if call.extra is not None and call.extra.is_sparse else call.extra
    with torch.enable_grad():
        logits = logits_of(head_call.head)
        operands = (logits, target, call.weight, extra)
        results = [LOSSES[call.name].reference(*operands, call.options, REDUCTION_NAMES[call.reduction])]
        upstreams = [upstream.to(results[0].dtype)]
        if lse_gradient is not None:
            assert isinstance(call.options, SoftmaxOptions)
            results.append(reference.lse(logits, target, call.options))
            upstreams.append(lse_gradient.to(results[1].dtype))
    differentiated = [
        x for x, bit in zip(head_call.head, _BITS, strict=True) if wanted & bit and x is not None
    ]
    return list(torch.autograd.grad(results, differentiated, upstreams, create_graph=create_graph))

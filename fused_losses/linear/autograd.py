"""The backward contract of a loss over a linear head.

fused      the forward makes the gradients of the summed losses, in float32; the first backward multiplies
           them by the upstream gradient and the mean's factor, rounds once, and hands them out; a later
           one recomputes
recompute  the forward makes the loss only, one matrix product; the backward makes the logits again
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import Function

from fused_losses.autograd import is_batched
from fused_losses.linear.composition import composed
from fused_losses.linear.operators import (
    LARGEST,
    OF_BIAS,
    OF_INPUT,
    OF_WEIGHT,
    linear_loss,
    linear_loss_backward,
)

Strategy = Literal["fused", "recompute"]


class LinearLoss(Function):
    """A loss over a linear head, the gradients of input, weight and bias, and what rows have besides."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        linear_weight: Tensor,
        linear_bias: Tensor | None,
        call: tuple[Any, ...],
        strategy: Strategy,
        of_rows: int,
        *tensors: Tensor,
    ) -> tuple[Tensor, ...]:
        """The loss, and by the bits of `of_rows`, lse and argmax; `call` has the other arguments."""
        wanted = sum(
            bit
            for bit, needed in zip((OF_INPUT, OF_WEIGHT, OF_BIAS), ctx.needs_input_grad, strict=False)
            if needed
        )
        head = (input, linear_weight, linear_bias)
        at_once = wanted if strategy == "fused" else 0
        loss, scale, *rest = linear_loss(*head, *arguments_of(call, tensors), at_once | of_rows)
        count = of_rows.bit_count()
        rows, gradients = rest[:count], rest[count:]
        if of_rows & LARGEST:
            ctx.mark_non_differentiable(rows[1])
        ctx.set_materialize_grads(False)
        ctx.call, ctx.wanted = call, wanted
        ctx.gradients = (scale, gradients) if strategy == "fused" else None
        ctx.save_for_backward(*head, *tensors)
        return loss, *rows

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *of_rows: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradients of the head's operands, where they are needed."""
        saved = ctx.saved_tensors  # once: checkpointing unpacks no tensor twice
        head, tensors = list(saved[:3]), saved[3:]
        of_lse = of_rows[0] if of_rows else None
        nothing = (None,) * (6 + len(tensors))
        if upstream is None:
            if of_lse is None:
                return nothing
            upstream = of_lse.new_zeros(of_lse.shape if "none" in ctx.call else ())
        ready, by_torch = ctx.gradients, torch.is_grad_enabled() or is_batched(upstream)
        if by_torch:
            gradients = _gradients_by_torch(ctx, head, tensors, upstream, of_lse)
        elif ready is not None and of_lse is None:
            if not torch.compiler.is_compiling():
                ctx.gradients = None
            scale, gradients = ready
            gradients = _scaled(gradients, scale * upstream, head, ctx.wanted)
        else:
            arguments = arguments_of(ctx.call, tensors)
            gradients = linear_loss_backward(upstream, of_lse, *head, *arguments, ctx.wanted)
            gradients = [g.to(x.dtype) for g, x in zip(gradients, _of(head, ctx.wanted), strict=True)]
        remaining = iter(gradients)
        of_head = (next(remaining) if ctx.wanted & bit else None for bit in (OF_INPUT, OF_WEIGHT, OF_BIAS))
        return *of_head, *nothing[3:]


def arguments_of(call: tuple[Any, ...], tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    """A call's, in the operators' order."""
    loss, tensor_names, *rest = call
    return loss, tensor_names, list(tensors), *rest


def _of(head: list[Tensor | None], wanted: int) -> list[Tensor]:
    """The operands whose gradients are wanted."""
    bits = (OF_INPUT, OF_WEIGHT, OF_BIAS)
    return [x for x, bit in zip(head, bits, strict=True) if wanted & bit and x is not None]


def _scaled(gradients: list[Tensor], factor: Tensor, head: list[Tensor | None], wanted: int) -> list[Tensor]:
    """In the operands' dtypes, rounded once; in place first, where no compiler looks: a head is large."""
    in_place = not torch.compiler.is_compiling()
    return [
        (gradient.mul_(factor) if in_place else gradient * factor.to(gradient.dtype)).to(operand.dtype)
        for gradient, operand in zip(gradients, _of(head, wanted), strict=True)
    ]


def _gradients_by_torch(
    ctx: Any,
    head: list[Tensor | None],
    tensors: tuple[Tensor, ...],
    upstream: Tensor,
    of_lse: Tensor | None,
) -> list[Tensor]:
    """Through torch's own operators and all logits, which autograd and vmap can see through."""
    loss, tensor_names, option_names, options, reduction, *_ = ctx.call
    create_graph = torch.is_grad_enabled()
    keywords = dict(zip((*tensor_names, *option_names), (*tensors, *options), strict=True))
    input, weight, bias = head
    assert input is not None and weight is not None
    with torch.enable_grad():
        if of_lse is None:
            results = [composed(input, weight, bias, loss, reduction=reduction, **keywords)]
        else:
            both = composed(input, weight, bias, loss, reduction=reduction, return_lse=True, **keywords)
            results = [both.loss, both.lse]
    upstreams = [upstream, of_lse][: len(results)]
    upstreams = [x.to(y.dtype) for x, y in zip(upstreams, results, strict=True) if x is not None]
    return list(torch.autograd.grad(results, _of(head, ctx.wanted), upstreams, create_graph=create_graph))

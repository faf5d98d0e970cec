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
from fused_losses.linear.operators import OF_BIAS, OF_INPUT, OF_WEIGHT, linear_loss, linear_loss_backward

Strategy = Literal["fused", "recompute"]


class LinearLoss(Function):
    """A loss over a linear head, and its gradients with respect to input, weight and bias."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        linear_weight: Tensor,
        linear_bias: Tensor | None,
        call: tuple[Any, ...],
        strategy: Strategy,
        *tensors: Tensor,
    ) -> Tensor:
        """The loss; `call` has the operators' arguments besides tensors."""
        wanted = sum(
            bit
            for bit, needed in zip((OF_INPUT, OF_WEIGHT, OF_BIAS), ctx.needs_input_grad, strict=False)
            if needed
        )
        head = (input, linear_weight, linear_bias)
        arguments = arguments_of(call, tensors)
        loss, scale, *gradients = linear_loss(*head, *arguments, wanted if strategy == "fused" else 0)
        ctx.call, ctx.wanted = call, wanted
        ctx.gradients = (scale, gradients) if strategy == "fused" else None
        ctx.save_for_backward(*head, *tensors)
        return loss  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the head's operands, where they are needed."""
        saved = ctx.saved_tensors  # once: checkpointing unpacks no tensor twice
        head, tensors = list(saved[:3]), saved[3:]
        ready, by_torch = ctx.gradients, torch.is_grad_enabled() or is_batched(upstream)
        if by_torch:
            gradients = _gradients_by_torch(ctx, head, tensors, upstream)
        elif ready is not None:
            if not torch.compiler.is_compiling():
                ctx.gradients = None
            scale, gradients = ready
            gradients = _scaled(gradients, scale * upstream, head, ctx.wanted)
        else:
            gradients = linear_loss_backward(upstream, *head, *arguments_of(ctx.call, tensors), ctx.wanted)
            gradients = [g.to(x.dtype) for g, x in zip(gradients, _of(head, ctx.wanted), strict=True)]
        remaining = iter(gradients)
        of_head = (next(remaining) if ctx.wanted & bit else None for bit in (OF_INPUT, OF_WEIGHT, OF_BIAS))
        return *of_head, None, None, *(None for _ in tensors)


def arguments_of(call: tuple[Any, ...], tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    """A call's, in the operators' order."""
    loss, tensor_names, *rest = call
    return loss, tensor_names, list(tensors), *rest


def _of(head: list[Tensor | None], wanted: int) -> list[Tensor]:
    """The operands whose gradients are wanted."""
    bits = (OF_INPUT, OF_WEIGHT, OF_BIAS)
    return [x for x, bit in zip(head, bits, strict=True) if wanted & bit and x is not None]


def _scaled(gradients: list[Tensor], factor: Tensor, head: list[Tensor | None], wanted: int) -> list[Tensor]:
    """In the operands' dtypes, rounded once; in place where nothing is rounded and no compiler looks."""
    in_place = not torch.compiler.is_compiling()
    return [
        gradient.mul_(factor)
        if in_place and gradient.dtype is operand.dtype
        else (gradient * factor.to(gradient.dtype)).to(operand.dtype)
        for gradient, operand in zip(gradients, _of(head, wanted), strict=True)
    ]


def _gradients_by_torch(
    ctx: Any, head: list[Tensor | None], tensors: tuple[Tensor, ...], upstream: Tensor
) -> list[Tensor]:
    """Through torch's own operators and all logits, which autograd and vmap can see through."""
    loss, tensor_names, option_names, options, reduction, *_ = ctx.call
    create_graph = torch.is_grad_enabled()
    keywords = dict(zip((*tensor_names, *option_names), (*tensors, *options), strict=True))
    with torch.enable_grad():
        input, weight, bias = head
        assert input is not None and weight is not None
        result = composed(input, weight, bias, loss, reduction=reduction, **keywords)
    return list(
        torch.autograd.grad(
            result, _of(head, ctx.wanted), upstream.to(result.dtype), create_graph=create_graph
        )
    )

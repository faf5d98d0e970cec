"""The backward contract: when gradients are computed, where they are kept, what a second backward does.

    fused      the forward writes the gradient for an upstream gradient of 1; the first backward hands it
               out, after computing it again into the same memory if the upstream gradient is another one
    recompute  the forward writes the loss only; every backward computes the gradient from the inputs
    inplace    as fused, but the gradient overwrites the input
    late       as recompute, but the gradient overwrites the input: what inplace becomes where upstream
               must be known first (reduction="none", float16)

A buffer is given away with the first backward, so no gradient that a user holds is ever written again.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx

from fused_losses import reference
from fused_losses.ops import OPERATORS, scale_
from fused_losses.registry import ARGMAX, EXTRA_GRADIENT, INPUT_GRADIENT, LOSSES, STATISTICS, TARGET_GRADIENT

Strategy = Literal["fused", "recompute", "inplace", "late"]

FEW_ELEMENTS = 2**16
"""Up to here, computing statistics of rows again is cheaper than a tensor that keeps them."""

REDUCTIONS = ("none", "mean", "sum", "batchmean")
"""By the number that operators know them by."""


Call = tuple[str, tuple[Any, ...], int, torch.dtype | None]
"""The operator's name, its own options (between its tensors and `reduction`), reduction, the loss's dtype."""


def loss_without_gradient(
    input: Tensor, target: Tensor, weight: Tensor | None, extra: Tensor | None, call: Call
) -> Tensor:
    """The loss alone: what runs where no one asks for a gradient."""
    name, options, reduction, dtype = call
    loss: Tensor = OPERATORS[name].forward(input, target, weight, extra, *options, reduction, dtype, 0)[0]
    return loss


class LossFunction(Function):
    """A loss and its gradients with respect to input, target and extra."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        extra: Tensor | None,
        call: Call,
        strategy: Strategy,
    ) -> Tensor:
        """The loss."""
        loss: Tensor = _forward(ctx, input, target, weight, extra, call, strategy, 0)[0]
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the operands, where they are needed."""
        return _backward(ctx, upstream, None)


class LossWithRows(Function):
    """The loss of a softmax, each row's log-sum-exp, and the class of its largest logit or None."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        target: Tensor,
        weight: Tensor | None,
        extra: Tensor | None,
        call: Call,
        strategy: Strategy,
        argmax: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Loss, lse and argmax."""
        more = STATISTICS | (ARGMAX if argmax else 0)
        loss, statistics, largest = _forward(ctx, input, target, weight, extra, call, strategy, more)
        if largest is not None:
            ctx.mark_non_differentiable(largest)
        # Who does not ask for the gradient of lse does not pay for it.
        ctx.set_materialize_grads(False)
        return loss, _lse(statistics, input), largest

    @staticmethod
    def backward(
        ctx: Any, upstream: Tensor | None, of_lse: Tensor | None, _: None
    ) -> tuple[Tensor | None, ...]:
        """The gradients of the operands, where they are needed."""
        if upstream is None and of_lse is None:
            return (None,) * 7
        if upstream is None:
            assert of_lse is not None
            reduced = ctx.call[0][2] != REDUCTIONS.index("none")
            upstream = of_lse.new_zeros(() if reduced else of_lse.shape)
        return *_backward(ctx, upstream, of_lse), None


def rows_without_gradient(
    input: Tensor, target: Tensor, weight: Tensor | None, extra: Tensor | None, call: Call, argmax: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """What LossWithRows returns, where no one asks for a gradient."""
    name, options, reduction, dtype = call
    bits = STATISTICS | (ARGMAX if argmax else 0)
    loss, statistics, *largest = OPERATORS[name].forward(
        input, target, weight, extra, *options, reduction, dtype, bits
    )
    return loss, _lse(statistics, input), largest[0] if largest else None


def _lse(statistics: Tensor, input: Tensor) -> Tensor:
    return (statistics[0] + statistics[1].log()).view(
        input.shape[:1] + input.shape[2:] if input.dim() > 1 else ()
    )


def _forward(
    ctx: Any,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    extra: Tensor | None,
    call: Call,
    strategy: Strategy,
    more: int,
) -> tuple[Any, Any, Any]:
    """The loss, and if asked for by bits, statistics and the largest classes."""
    name, options, reduction, dtype = call
    of_input, of_target, _, of_extra, *_ = ctx.needs_input_grad
    row = LOSSES[name]
    wanted = INPUT_GRADIENT * of_input | TARGET_GRADIENT * of_target | EXTRA_GRADIENT * of_extra
    wanted &= row.differentiable
    operators = OPERATORS[name]
    at_once = strategy == "fused" or strategy == "inplace"
    overwrite = strategy == "inplace" and of_input
    keep = row.has_statistics and (not at_once or more or input.numel() > FEW_ELEMENTS)
    run = operators.forward_inplace if overwrite else operators.forward
    bits = (wanted if at_once else 0) | (STATISTICS if keep else 0) | (more & ARGMAX)
    # Not `loss, *outputs = ...`, of which torch.compile makes a tuple in torch 2.11.
    outputs = list(run(input, target, weight, extra, *options, reduction, dtype, bits))
    loss = outputs.pop(0)
    fourth = outputs.pop(0) if keep else extra
    largest = outputs.pop(0) if more & ARGMAX else None
    if overwrite:
        torch.autograd.graph.increment_version(input)
        outputs.insert(0, input.detach())
    ctx.gradients = outputs if at_once else None
    ctx.call = (call, strategy, wanted)
    ctx.only_input = wanted == INPUT_GRADIENT and (not at_once or outputs[0].shape == input.shape)
    ctx.save_for_backward(None if overwrite else input, target, weight, fourth)
    return loss, fourth, largest


def _backward(ctx: Any, upstream: Tensor, of_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    """The gradients of the operands, of which the first four are tensors."""
    ready = ctx.gradients
    # create_graph=True, or a batch of upstream gradients, as jacobians have
    by_torch = torch.is_grad_enabled() or is_batched(upstream)
    if not by_torch:
        ctx.gradients = None
        if ready is not None and of_lse is None and ctx.only_input and _is_plainly_one(upstream):
            # Most training steps: nothing is left to compute, so nothing else is looked at.
            return ready[0], None, None, None, None, None
    (name, options, reduction, _), strategy, wanted = ctx.call
    input, target, weight, fourth = ctx.saved_tensors
    if input is None:
        gradients = _gradients_in_place(ready, upstream, by_torch, of_lse)
    elif by_torch:
        gradients = _gradients_by_torch(ctx, upstream, of_lse)
    else:
        operators = OPERATORS[name]
        if of_lse is not None:
            options = (*options[:-1], of_lse)
        arguments = (upstream, input, target, weight, fourth, *options, reduction, wanted)
        if ready is not None:
            if of_lse is not None or not _is_plainly_one(upstream):
                operators.backward_into(ready, of_lse is None, *arguments)
            gradients = ready
        elif strategy == "late" and wanted & INPUT_GRADIENT:
            gradients = _gradients_into_input(operators, arguments)
        else:
            gradients = operators.backward(*arguments)
    remaining = iter(gradients)
    of_input, of_target, of_extra = (
        _sum_to_shape_of(operand, next(remaining)) if wanted & bit else None
        for operand, bit in (
            (input, INPUT_GRADIENT),
            (target, TARGET_GRADIENT),
            (fourth, EXTRA_GRADIENT),
        )
    )
    return of_input, of_target, None, of_extra, None, None


def _sum_to_shape_of(operand: Tensor | None, gradient: Tensor) -> Tensor:
    """Of a broadcast operand; one that is overwritten was none."""
    if operand is None or gradient.shape == operand.shape:
        return gradient
    return gradient.sum_to_size(operand.shape)


def _is_plainly_one(upstream: Tensor) -> bool:
    """Whether the upstream gradient can be seen to be 1 without waiting for a device.

    A look at the CPU's own memory is cheaper than the operator, which looks for itself.
    """
    return upstream.is_cpu and upstream.numel() == 1 and upstream.item() == 1


def is_batched(upstream: Tensor) -> bool:
    """Whether many upstream gradients come at once: from torch.func.vmap, or from is_grads_batched=True."""
    if torch._C._are_functorch_transforms_active():
        return True
    return not torch.compiler.is_compiling() and torch._C._functorch.is_legacy_batchedtensor(upstream)


def _gradients_in_place(
    ready: list[Tensor] | None, upstream: Tensor, by_torch: bool, of_lse: Tensor | None
) -> list[Tensor]:
    if ready is None:
        raise RuntimeError(
            "Trying to backward through the graph a second time, but backward='inplace' has handed out its "
            "only gradient, which overwrote the input. Use backward='fused' or 'recompute' to backward again."
        )
    if of_lse is not None:
        raise RuntimeError(
            "backward='inplace' overwrote the input, from which the gradient of lse would be made: use "
            "backward='fused' or 'recompute' for that."
        )
    if by_torch:
        raise RuntimeError(
            "backward='inplace' overwrote the input, so its gradient cannot be differentiated again or for "
            "a batch of upstream gradients: use backward='fused' or 'recompute' for that."
        )
    if not _is_plainly_one(upstream):
        for gradient in ready:
            scale_(gradient, upstream)
    return ready


def _gradients_into_input(operators: Any, arguments: tuple[Any, ...]) -> list[Tensor]:
    """The input's gradient over the input; the others, which still read the input, before that."""
    upstream, input, *rest, wanted = arguments
    others = []
    if wanted & ~INPUT_GRADIENT:
        others = operators.backward(upstream, input, *rest, wanted & ~INPUT_GRADIENT)
    memory = input.detach()
    operators.backward_into([memory], False, upstream, memory, *rest, INPUT_GRADIENT)
    torch.autograd.graph.increment_version(input)
    return [memory, *others]


def _gradients_by_torch(ctx: FunctionCtx, upstream: Tensor, of_lse: Tensor | None) -> list[Tensor]:
    """The gradients through torch's own operators, which autograd and vmap can see through."""
    (name, options, reduction, dtype), _, wanted = ctx.call  # type: ignore[attr-defined]
    input, target, weight, fourth = ctx.saved_tensors  # type: ignore[attr-defined]
    extra = None if LOSSES[name].has_statistics else fourth
    bits = ((input, INPUT_GRADIENT), (target, TARGET_GRADIENT), (extra, EXTRA_GRADIENT))
    of = [tensor for tensor, bit in bits if wanted & bit and tensor is not None]
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        operands = [_cast(tensor, dtype) for tensor in (input, target, weight, extra)]
        results = [LOSSES[name].reference(*operands, options, REDUCTIONS[reduction])]
        upstreams = [upstream.to(results[0].dtype)]
        if of_lse is not None:
            assert operands[0] is not None
            results.append(reference.lse(operands[0], target, options))
            upstreams.append(of_lse.to(results[1].dtype))
    return list(torch.autograd.grad(results, of, upstreams, create_graph=create_graph))


def _cast(tensor: Tensor | None, dtype: torch.dtype | None) -> Tensor | None:
    """To the dtype that the loss was asked for, as autocast would have cast the operands."""
    if tensor is None or dtype is None or not tensor.is_floating_point():
        return tensor
    return tensor.to(dtype)

"""The backward contract: when gradients are computed, where they are kept, what a second backward does.

    fused      the forward writes the gradient for an upstream gradient of 1; the first backward hands it
               out, after computing it again into the same memory if the upstream gradient is another one
    recompute  the forward writes the loss only; every backward computes the gradient from the inputs
    inplace    as fused, but the gradient overwrites the input
    late       as recompute, but the gradient overwrites the input: what inplace becomes where upstream
               must be known first (reduction="none", float16)

A buffer is given away with the first backward, so no gradient that a user holds is ever written again.
Gradients of losses that broadcast have the broadcast shape; autograd sums them to their operands' shapes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fused_losses import devices, modes, reference
from fused_losses.call import REDUCTION_NAMES, Call, Options, Reduction, Strategy
from fused_losses.ops import OPERATORS, Operators, scale_
from fused_losses.registry import ARGMAX, EXTRA_GRADIENT, INPUT_GRADIENT, LOSSES, STATISTICS, TARGET_GRADIENT
from fused_losses.shapes import positions

FEW_ELEMENTS = 2**14
"""Elements of an input up to which statistics of rows are not kept: a backward that needs them computes them
again, which takes as long there, measured with 64 rows on a CPU."""


def loss_without_gradient(call: Call) -> Tensor:
    """The loss alone: what runs where no one asks for a gradient."""
    forward = OPERATORS[call.name].forward
    operands = (call.input, call.target, call.weight, call.extra)
    loss: Tensor = forward(*operands, *call.options, call.reduction, call.dtype, 0)[0]
    return loss


class LossFunction(Function):
    """A loss, and its gradients with respect to input, target and extra."""

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
        """The loss, () or shaped as the reduction leaves it."""
        loss: Tensor = _forward(ctx, input, target, weight, extra, call, strategy, 0)[0]
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the operands, where they are needed, each shaped as its operand."""
        return _backward(ctx, upstream, None, ctx.settings[2])


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
        """The loss; lse (N, d1, ...), float32 (float64 for float64); argmax (N, d1, ...), int64."""
        more = STATISTICS | (ARGMAX if argmax else 0)
        loss, statistics, largest = _forward(ctx, input, target, weight, extra, call, strategy, more)
        if largest is not None:
            ctx.mark_non_differentiable(largest)
        # Who does not ask for the gradient of lse does not pay for it.
        ctx.set_materialize_grads(False)
        return loss, _lse(statistics, input), largest

    @staticmethod
    def backward(
        ctx: Any, upstream: Tensor | None, lse_gradient: Tensor | None, _: None
    ) -> tuple[Tensor | None, ...]:
        """The gradients of the operands, where they are needed."""
        if upstream is None and lse_gradient is None:
            return (None,) * 7
        reduction = ctx.settings[2]
        if upstream is None:
            assert lse_gradient is not None
            by_row = reduction == Reduction.NONE
            upstream = lse_gradient.new_zeros(lse_gradient.shape if by_row else ())
            # A sum divides by 1. A mean may divide by 0, and 0 / 0 would reach the gradient of lse.
            reduction = reduction if by_row else Reduction.SUM
        return *_backward(ctx, upstream, lse_gradient, reduction), None


def rows_without_gradient(call: Call, argmax: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """What LossWithRows returns, where no one asks for a gradient."""
    bits = STATISTICS | (ARGMAX if argmax else 0)
    loss, statistics, *largest = OPERATORS[call.name].forward(
        *call.operands, *call.options, call.reduction, call.dtype, bits
    )
    return loss, _lse(statistics, call.input), largest[0] if largest else None


def _lse(statistics: Tensor, input: Tensor) -> Tensor:
    """Each row's log-sum-exp (N, d1, ...), from statistics (2 or 3, rows)."""
    return (statistics[0] + statistics[1].log()).view(positions(input))


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
    """The loss, and if asked for by the bits of `more`: statistics (2 or 3, rows), largest classes.

    Operands come besides the call, since autograd must see them; the call's own are not kept.
    """
    name, options, reduction = call.name, call.options, call.reduction
    loss_row = LOSSES[name]
    input_needed, target_needed, _, extra_needed, *_ = ctx.needs_input_grad
    wanted = (
        INPUT_GRADIENT * input_needed | TARGET_GRADIENT * target_needed | EXTRA_GRADIENT * extra_needed
    ) & loss_row.differentiable
    in_forward = strategy == "fused" or strategy == "inplace"
    overwrite = strategy == "inplace"
    keep = loss_row.has_statistics and (not in_forward or more or input.numel() > FEW_ELEMENTS)
    operators = OPERATORS[name]
    operator = operators.forward_inplace if overwrite else operators.forward
    bits = (wanted if in_forward else 0) | (STATISTICS if keep else 0) | (more & ARGMAX)
    # Not `loss, *outputs = ...`: torch.compile of torch 2.11 makes a tuple of `outputs`, which has no pop.
    outputs = list(operator(input, target, weight, extra, *options, reduction, call.dtype, bits))
    loss = outputs.pop(0)
    extra_or_statistics = outputs.pop(0) if keep else extra
    largest = outputs.pop(0) if more & ARGMAX else None
    if overwrite:
        torch.autograd.graph.increment_version(input)
        # The input is its gradient from here on, and autograd tells if someone writes to it once more.
        ctx.save_for_backward(input.detach())
    else:
        ctx.save_for_backward(input, target, weight, extra_or_statistics)
    # Whoever takes this has the buffers, or with "late" the right to overwrite the input.
    ctx.gradients = [outputs] if strategy != "recompute" else None
    # One attribute for all that a backward may need, since setting each by itself slows small losses.
    ctx.settings = (name, options, reduction, call.dtype, strategy, wanted, devices.preferred())
    ctx.is_overwritten = overwrite
    ctx.only_input = in_forward and wanted == INPUT_GRADIENT
    return loss, extra_or_statistics, largest


def _backward(
    ctx: Any, upstream: Tensor, lse_gradient: Tensor | None, reduction: int
) -> tuple[Tensor | None, ...]:
    """The gradients of what the forward was given, whose first four are the operands."""
    # create_graph=True, or a batch of upstream gradients, as jacobians have
    by_torch = torch.is_grad_enabled() or modes.is_batched(upstream)
    # A compiled backward computes gradients anew, too, unless there is nothing left to compute them from.
    is_compiling = modes.is_compiling()
    anew = by_torch or (is_compiling and not ctx.is_overwritten)
    ready = None if anew else take_gradients(ctx)
    is_at_hand = lse_gradient is None and ctx.only_input and not is_compiling
    if ready is not None and is_at_hand and _is_plainly_one(upstream):
        # Most training steps: nothing is left to compute, so nothing else is looked at.
        gradient = ctx.saved_tensors[0] if ctx.is_overwritten else ready[0]
        return gradient, None, None, None, None, None
    *_, wanted, backend = ctx.settings
    with modes.prefer(backend):
        if ctx.is_overwritten:
            gradients = _gradients_in_place(ctx, ready, upstream, by_torch, lse_gradient)
        elif by_torch:
            gradients = _gradients_by_torch(ctx, upstream, lse_gradient, reduction)
        else:
            gradients = _gradients_by_kernels(ctx, ready, upstream, lse_gradient, reduction)
    remaining = iter(gradients)
    input_gradient, target_gradient, extra_gradient = (
        next(remaining) if wanted & bit else None for bit in (INPUT_GRADIENT, TARGET_GRADIENT, EXTRA_GRADIENT)
    )
    return input_gradient, target_gradient, None, extra_gradient, None, None


def take_gradients(ctx: Any) -> Any:
    """The gradients that the forward left to one backward; None if it left none, or another has taken them.

    That is one step, since two threads may run backwards of one retained graph at the same time.
    """
    if ctx.gradients is None:
        return None
    try:
        return ctx.gradients.pop()
    except IndexError:
        return None


def _gradients_by_kernels(
    ctx: Any, ready: list[Tensor] | None, upstream: Tensor, lse_gradient: Tensor | None, reduction: int
) -> list[Tensor]:
    """The wanted gradients, in the order of operands.

    Args:
        ctx: what the forward has kept.
        ready: the gradients for an upstream gradient of 1, if the forward made them.
        upstream: the gradient of the loss.
        lse_gradient: that of log-sum-exps, or None.
        reduction: the forward's, or for log-sum-exps alone, another whose divisor is not 0.
    """
    name, options, _, _, strategy, wanted, _ = ctx.settings
    operators = OPERATORS[name]
    if lse_gradient is not None:
        options = options._replace(lse_gradient=lse_gradient)
    rest = (*options, reduction, wanted)
    if strategy == "late" and not modes.is_compiling():
        _check_not_taken(ready)
        return _gradients_into_input(operators, (upstream, *ctx.saved_tensors, *rest))
    if ready is None:
        gradients: list[Tensor] = operators.backward(upstream, *ctx.saved_tensors, *rest)
        return gradients
    if lse_gradient is None and _is_plainly_one(upstream):
        return ready
    try:
        operands = ctx.saved_tensors
    except RuntimeError as error:
        if lse_gradient is not None or "modified by an inplace operation" not in str(error):
            raise
        # Torch's own losses mostly keep results instead of operands, so users may change these in place.
        return _multiplied(ready, upstream)
    operators.backward_into(ready, lse_gradient is None, upstream, *operands, *rest)
    return ready


def _multiplied(gradients: list[Tensor], upstream: Tensor) -> list[Tensor]:
    """Gradients that were made for an upstream gradient of 1, times upstream, in their own memory."""
    if modes.is_compiling() or not _is_plainly_one(upstream):
        for gradient in gradients:
            scale_(gradient, upstream)
    return gradients


def _is_plainly_one(upstream: Tensor) -> bool:
    """Whether the upstream gradient can be seen to be 1 without waiting for a device.

    A look at the CPU's own memory is cheaper than the operator, which looks for itself. Nothing is seen of
    subclasses, nor where a mode follows; what a compiler traces must not come here.
    """
    return (
        type(upstream) is Tensor
        and upstream.is_cpu
        and not modes.is_followed()
        and upstream.numel() == 1
        and upstream.item() == 1
    )


def _gradients_in_place(
    ctx: Any, ready: list[Tensor] | None, upstream: Tensor, by_torch: bool, lse_gradient: Tensor | None
) -> list[Tensor]:
    """The gradients that the forward made, the first of them over the input, times upstream."""
    if by_torch:
        raise RuntimeError(
            "backward='inplace' overwrote the input, so its gradient cannot be differentiated again or for "
            "a batch of upstream gradients: use backward='fused' or 'recompute' for that."
        )
    if lse_gradient is not None:
        raise RuntimeError(
            "backward='inplace' overwrote the input, from which the gradient of lse would be made: use "
            "backward='fused' or 'recompute' for that."
        )
    return _multiplied([*ctx.saved_tensors, *_check_not_taken(ready)], upstream)


def _check_not_taken(ready: list[Tensor] | None) -> list[Tensor]:
    """What was taken; raises RuntimeError where another backward has taken it before."""
    if ready is None:
        raise RuntimeError(
            "Trying to backward through the graph a second time, but backward='inplace' has handed out its "
            "only gradient, which overwrote the input. Use backward='fused' or 'recompute' to backward again."
        )
    return ready


def _gradients_into_input(operators: Operators, arguments: tuple[Any, ...]) -> list[Tensor]:
    """The gradients, the input's over the input, after the others, which still read the input."""
    upstream, input, *rest, wanted = arguments
    others = []
    if wanted & ~INPUT_GRADIENT:
        others = operators.backward(upstream, input, *rest, wanted & ~INPUT_GRADIENT)
    memory = input.detach()
    operators.backward_into([memory], False, upstream, memory, *rest, INPUT_GRADIENT)
    torch.autograd.graph.increment_version(input)
    return [memory, *others]


def _gradients_by_torch(
    ctx: Any, upstream: Tensor, lse_gradient: Tensor | None, reduction: int
) -> list[Tensor]:
    """The gradients through torch's own operators, which autograd and vmap can see through."""
    name, options, _, dtype, _, wanted, _ = ctx.settings
    input, target, weight, extra_or_statistics = ctx.saved_tensors
    extra = None if LOSSES[name].has_statistics else extra_or_statistics
    bits = ((input, INPUT_GRADIENT), (target, TARGET_GRADIENT), (extra, EXTRA_GRADIENT))
    differentiated = [tensor for tensor, bit in bits if wanted & bit and tensor is not None]
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        results = [composed(name, (input, target, weight, extra), options, reduction, dtype)]
        upstreams = [upstream.to(results[0].dtype)]
        if lse_gradient is not None:
            results.append(reference.lse(_cast(input, dtype), target, options))
            upstreams.append(lse_gradient.to(results[1].dtype))
    return list(torch.autograd.grad(results, differentiated, upstreams, create_graph=create_graph))


def composed(
    name: str,
    operands: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    options: Options,
    reduction: int,
    dtype: torch.dtype | None,
) -> Tensor:
    """The loss of what kernels take, in torch's own operators, differentiable any number of times.

    Args:
        name: the loss.
        operands: input, target, weight and extra.
        options: what the loss's family takes besides.
        reduction: a number of `Reduction`.
        dtype: the loss's dtype, where it is not the input's: operands are cast to it, as autocast would.
    """
    cast = (x if x is None else _cast(x, dtype) for x in operands)
    loss: Tensor = LOSSES[name].reference(*cast, options, REDUCTION_NAMES[reduction])
    return loss


def _cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)

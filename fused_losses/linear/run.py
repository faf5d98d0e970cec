"""Who takes a loss over a linear head: the operators, chunk by chunk, or all of its logits at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fused_losses import dispatch
from fused_losses.dispatch import autocasts, kernels_take
from fused_losses.linear import operators
from fused_losses.linear.autograd import LinearLoss, Strategy, arguments_of
from fused_losses.linear.chunks import rows_per_chunk
from fused_losses.linear.composition import composed
from fused_losses.linear.operators import is_taken
from fused_losses.linear.products import logits_dtype
from fused_losses.operands import FLOATING

Head = tuple[Tensor, Tensor, Tensor | None]
"""input, linear_weight and linear_bias."""


def is_head(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None) -> bool:
    """Whether these are the operands of a linear layer, and such as chunks can be made of."""
    classes = linear_weight.shape[:-1]
    same = all(x is None or x.dtype is input.dtype for x in (linear_weight, linear_bias))
    return (
        kernels_take(input, linear_weight, linear_bias)
        and input.dtype in FLOATING
        and (same or autocasts(input))
        and input.dim() > 0
        and linear_weight.dim() > 1
        and input.shape[-1] == linear_weight.shape[-1]
        and input.numel() > 0
        and linear_weight.numel() > 0
        and (linear_bias is None or linear_bias.shape == classes)
    )


def over_head(
    head: Head,
    loss: str,
    keywords: dict[str, Any],
    reduction: str,
    workspace: int | None,
    backward: Strategy,
    *,
    rows: int | None = None,
    dtype: torch.dtype | None = None,
    logits: torch.dtype | None = None,
    of_rows: int = 0,
) -> tuple[Tensor, ...]:
    """Chunk by chunk if kernels take the loss, and nothing but the head requires grad.

    Args:
        head: input (N, D), linear_weight and linear_bias.
        loss: its name.
        keywords: its other arguments.
        reduction: its reduction.
        workspace: bytes of logits at a time.
        backward: the strategy that is asked for.
        rows: how many of them at a time, whatever that takes.
        dtype: the loss's, if not the input's.
        logits: the logits' dtype, if it is not to be chosen by what the device multiplies well.
        of_rows: bits of `operators`: what rows of a softmax are to have.

    Returns:
        The loss, and what rows have, in the order of bits.
    """
    keywords = {name: value for name, value in keywords.items() if value is not None}
    if autocasts(head[0]):
        head, dtype = _autocast(head), dtype or wide(head)
    device = head[0].device
    logits = logits or logits_dtype(torch.promote_types(head[0].dtype, head[1].dtype), device)
    if rows is None:
        rows = rows_per_chunk(head[1].shape[:-1].numel(), logits.itemsize, workspace, device)
    names = [name for name, value in keywords.items() if isinstance(value, Tensor)]
    tensors = [keywords[name] for name in names]
    options = [name for name in keywords if name not in names]
    values = [keywords[name] for name in options]
    call = (loss, names, options, values, reduction, dtype or head[0].dtype, logits, rows)
    differentiated = torch.is_grad_enabled()
    why = None
    if differentiated and any(tensor.requires_grad for tensor in tensors):
        why = "an operand besides the head requires grad"
    elif not all(isinstance(value, (int, float)) for value in values):
        why = "an option is no number"
    elif dispatch.is_transformed():
        why = "torch.func and forward-mode AD must see through the operators"
    elif not torch.compiler.is_compiling() and not is_taken(head, tensors, *call):
        why = "the loss is not one of a chunk of rows, or no kernel takes it so"
    if dispatch.decisions is not None:
        how = f"chunks of {rows} rows, {backward}" if why is None else f"all logits, because {why}"
        dispatch.decisions.append(f"linear {loss}: {how}")
    if why is not None:
        if not of_rows:
            return (composed(*head, loss, reduction=reduction, **keywords),)
        keywords |= {"return_lse": True, "return_argmax": bool(of_rows & operators.LARGEST)}
        results = composed(*head, loss, reduction=reduction, **keywords)
        return results.loss, results.lse, results.argmax
    if not (differentiated and any(x is not None and x.requires_grad for x in head)):
        loss_, _, *found = operators.linear_loss(*head, *arguments_of(call, tensors), of_rows)
        return loss_, *found
    hooked = not torch.compiler.is_compiling() and dispatch.saved_tensors_are_hooked()
    recompute = backward == "recompute" or reduction == "none" or hooked
    strategy: Strategy = "recompute" if recompute else "fused"
    done: tuple[Tensor, ...] = LinearLoss.apply(*head, call, strategy, of_rows, *tensors)
    return done


def wide(head: Head) -> torch.dtype:
    """What sums are made in."""
    return torch.float64 if head[0].dtype is torch.float64 else torch.float32


def _autocast(head: Head) -> Head:
    """To autocast's dtype where its products are worth it; float64 stays, as in torch."""
    device = head[0].device
    dtype = torch.get_autocast_dtype(device.type)
    if logits_dtype(dtype, device) is not dtype or head[0].dtype is torch.float64:
        return head
    input, weight, bias = head
    return input.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)

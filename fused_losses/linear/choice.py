"""How a loss over a linear head is computed: by the operators, chunk by chunk, or from all logits at once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fused_losses import modes
from fused_losses.call import Call, Reduction
from fused_losses.linear import operators
from fused_losses.linear.autograd import LinearLoss, Strategy
from fused_losses.linear.chunks import rows_per_chunk
from fused_losses.linear.composition import composed, warn_of_all_logits
from fused_losses.linear.head import Head, HeadCall, plan
from fused_losses.linear.products import choose_logits_dtype
from fused_losses.losses.checks import warn_of_broadcast
from fused_losses.registry import LOSSES

TRANSFORMED = "torch.func and forward-mode AD must see through the operators"


def over_head(
    head: Head,
    loss: str,
    keywords: dict[str, Any],
    reduction: str,
    workspace: int | None,
    backward: Strategy,
    *,
    chunk_rows: int | None = None,
    dtype: torch.dtype | None = None,
    logits_dtype: torch.dtype | None = None,
    row_bits: int = 0,
) -> tuple[Tensor, ...]:
    """A loss over a head: chunk by chunk if kernels take it and nothing but the head requires grad.

    Args:
        head: the layer; input (N, D).
        loss: the name of the loss.
        keywords: the loss's other arguments, by name.
        reduction: "none", "mean" or "sum".
        workspace: bytes of logits at a time.
        backward: the strategy that is asked for.
        chunk_rows: how many rows have logits at a time, whatever that takes.
        dtype: the loss's dtype, if not the input's.
        logits_dtype: the logits', if it is not to be chosen by what the device multiplies well.
        row_bits: bits of `operators`: what is wanted of each row of a softmax, log-sum-exp and largest class.

    Returns:
        The loss, and what is wanted of rows, (N, d1, ...), in the order of bits.
    """
    keywords = {name: value for name, value in keywords.items() if value is not None}
    if modes.autocasts(head.input):
        head, dtype = _autocast(head), dtype or head.accumulate_dtype
    device = head.input.device
    asked = "workspace" if workspace is not None else None if chunk_rows is None else "options"
    if logits_dtype is None:
        logits_dtype = choose_logits_dtype(torch.promote_types(head.input.dtype, head.weight.dtype), device)
    if chunk_rows is None:
        chunk_rows = rows_per_chunk(head.classes.numel(), logits_dtype.itemsize, workspace, device)
    is_differentiated = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in head)
    call = why = None
    if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in keywords.values()):
        why = "an operand besides the head requires grad"
    elif modes.is_transformed():
        why = TRANSFORMED
    else:
        call = plan(loss, head, logits_dtype, reduction, keywords)
        if call is None:
            why = "kernels do not take this loss, or not for a part of the rows"
        elif LOSSES[loss].warns_of_broadcast and call.target.shape != call.input.shape:
            warn_of_broadcast(call.input, call.target)
    strategy: Strategy | None = None
    how = "without gradients: none is asked for"
    if call is not None and is_differentiated:
        strategy, how = _strategy_of_gradient(call, backward)
    if (heard := modes.hear()) is not None:
        told = f"chunks of {chunk_rows} rows, {how}" if why is None else f"all logits, because {why}"
        heard.append(f"linear {loss}: {told}")
    if call is None:
        assert why is not None
        warn_of_all_logits(loss, asked, why)
        if not row_bits:
            return (composed(head, loss, reduction=reduction, **keywords),)
        keywords |= {"return_lse": True, "return_argmax": bool(row_bits & operators.LARGEST)}
        results = composed(head, loss, reduction=reduction, **keywords)
        return results.loss, results.lse, results.argmax
    arguments = HeadCall(head, call, dtype or head.input.dtype, chunk_rows).to_arguments()
    if strategy is None:
        result, _, *row_results = operators.linear_loss(*arguments, row_bits)
        return result, *row_results
    results_and_rows: tuple[Tensor, ...] = LinearLoss.apply(strategy, row_bits, *arguments)
    return results_and_rows


def _strategy_of_gradient(call: Call, backward: Strategy) -> tuple[Strategy, str]:
    """The strategy of a call with a gradient, and as `explain` tells it."""
    if backward == "recompute":
        return "recompute", "recompute, as asked for"
    if call.reduction == Reduction.NONE:
        why = "each loss has an upstream gradient of its own, which must be known first"
    elif not modes.is_compiling() and modes.saved_tensors_are_hooked():
        why = "hooks are to see all tensors that are saved"
    else:
        return "fused", "fused, as asked for"
    return "recompute", f"recompute, because {why}"


def _autocast(head: Head) -> Head:
    """The head in autocast's dtype, where the device multiplies that well; float64 stays, as in torch."""
    device = head.input.device
    dtype = torch.get_autocast_dtype(device.type)
    if choose_logits_dtype(dtype, device) is not dtype or head.input.dtype is torch.float64:
        return head
    input, weight, bias = head
    return Head(input.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))

"""Losses over a linear head, without its logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_losses import dispatch, functional
from fused_losses.dispatch import autocasts, by_torch, kernels_take
from fused_losses.linear import operators
from fused_losses.linear.autograd import LinearLoss, arguments_of
from fused_losses.linear.chunks import rows_per_chunk
from fused_losses.linear.composition import composed
from fused_losses.linear.operators import is_taken
from fused_losses.linear.products import logits_dtype
from fused_losses.operands import FLOATING
from fused_losses.registry import LOSSES

if TYPE_CHECKING:
    from torch.nn import LinearCrossEntropyOptions

LinearBackward = Literal["fused", "recompute"]


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: LinearCrossEntropyOptions | None = None,
    workspace: int | None = None,
    backward: LinearBackward = "fused",
) -> Tensor:
    r"""Cross-entropy of the logits :math:`x W^T + b`, which are never there as a whole.

    `cross_entropy(linear(input, linear_weight, linear_bias), target, ...)` with a workspace instead of the
    logits: a chunk of rows at a time, loss and gradients together. Logits are in float32 where 16 bits would
    have to be emulated, and the head's gradient is always added up in float32 (float64 for float64). See
    :func:`torch.nn.functional.linear_cross_entropy`.

    Args:
        input: (N, D) or (D).
        linear_weight: (C, D), or (C, d1, ..., D) for a loss of dimension K.
        target: class indices (N), () or (N, d1, ...), or probabilities shaped as the logits.
        linear_bias: (C) or (C, d1, ...).
        weight: (C), a factor for each class.
        reduction: "none", "mean" or "sum", as :func:`cross_entropy` has them.
        ignore_index: a class that does not count; None is -100. Its rows are left out of the products.
        label_smoothing: in [0, 1].
        options: torch's; of these, `batch_chunk_size` is obeyed. The others choose between precision, memory
            and a second backward; this has all of them.
        workspace: bytes of logits at a time; 96 MiB if not given.
        backward: "fused": the forward makes the gradients, and holds them until the backward. "recompute":
            the backward makes the logits again, a fourth matrix product. So does every backward of
            reduction="none", and any but the first.

    Raises:
        IndexError: a class index outside [0, C) that is not ignore_index.
        RuntimeError: shapes or dtypes that do not fit.
        ValueError: another `backward`; a workspace that is not positive.
    """
    _check(workspace, backward)
    probabilities = target.shape == (*input.shape[:-1], *linear_weight.shape[:-1])
    if (
        input.dim() not in (1, 2)
        or (input.dim() == 1 and linear_weight.dim() != 2)
        or not _is_head(input, linear_weight, linear_bias)
        or not kernels_take(target, weight)
        or reduction not in ("none", "mean", "sum")
        or (probabilities and ignore_index is not None)
        or (weight is not None and weight.dtype is not input.dtype and not autocasts(input))
    ):
        return by_torch(
            getattr(F, "linear_cross_entropy", _composed_cross_entropy),
            input,
            linear_weight,
            target,
            linear_bias=linear_bias,
            weight=weight,
            reduction=reduction,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
        )
    single = input.dim() == 1
    loss = _over_head(
        (input.unsqueeze(0) if single else input, linear_weight, linear_bias),
        "cross_entropy",
        {
            "target": target.unsqueeze(0) if single else target,
            "weight": weight,
            "ignore_index": -100 if ignore_index is None else ignore_index,
            "label_smoothing": label_smoothing,
        },
        reduction,
        workspace if options is None else None,
        backward,
        rows=None if options is None else options.batch_chunk_size,
    )
    return loss.squeeze(0) if single and reduction == "none" else loss


def linear_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor | None = None,
    loss: str = "cross_entropy",
    *,
    linear_bias: Tensor | None = None,
    reduction: str = "mean",
    workspace: int | None = None,
    backward: LinearBackward = "fused",
    **options: Any,
) -> Tensor:
    r"""Any loss of this package over the logits :math:`x W^T + b`, which are never there as a whole.

    `loss(linear(input, linear_weight, linear_bias), target, reduction=reduction, **options)`, a chunk of rows
    at a time, as :func:`linear_cross_entropy`. For many labels: `binary_cross_entropy_with_logits`, whose
    target may be sparse, so that it takes no more memory than its labels. For distillation: `kl_div`, before
    which the logits go through log_softmax, as it is defined on log-probabilities. Torch has no such thing.

    Args:
        input: (N, D).
        linear_weight: (V, D).
        target: as the loss takes it: (N, V), sparse (COO) or dense, or class indices (N). None for losses
            whose operands have other names, such as `positive` and `negative`, which are given by name.
        loss: the name of a function in `fused_losses.functional`.
        linear_bias: (V).
        reduction: as the loss takes it.
        workspace: bytes of logits at a time; 96 MiB if not given.
        backward: "fused" or "recompute", as in :func:`linear_cross_entropy`.
        **options: the loss's other arguments, by name. Where a tensor among them, or target, requires grad,
            all logits are made.

    Raises:
        ValueError: a loss that this package does not have; another `backward`; a workspace that is not
            positive.
        RuntimeError: shapes or dtypes that do not fit.
    """
    _check(workspace, backward)
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, but it is {loss!r}")
    keywords = options if target is None else {"target": target, **options}
    head = (input, linear_weight, linear_bias)
    if loss == "kl_div":
        return _divergence(head, reduction, workspace, backward, **keywords)
    if not _is_head(*head) or input.dim() != 2:
        return composed(*head, loss, reduction=reduction, **keywords)
    return _over_head(head, loss, keywords, reduction, workspace, backward)


Head = tuple[Tensor, Tensor, Tensor | None]


def _check(workspace: int | None, backward: str) -> None:
    if backward not in ("fused", "recompute"):
        raise ValueError(f"backward must be 'fused' or 'recompute', but it is {backward!r}")
    if workspace is not None and workspace <= 0:
        raise ValueError(f"workspace must be a positive number of bytes, but it is {workspace}")


def _composed_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None,
    ignore_index: int | None,
    **keywords: Any,
) -> Tensor:
    """For a torch that does not have the function."""
    ignored = -100 if ignore_index is None else ignore_index
    return composed(
        input, linear_weight, linear_bias, "cross_entropy", target=target, ignore_index=ignored, **keywords
    )


def _is_head(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None) -> bool:
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


def _over_head(
    head: Head,
    loss: str,
    keywords: dict[str, Any],
    reduction: str,
    workspace: int | None,
    backward: LinearBackward,
    *,
    rows: int | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Chunk by chunk if kernels take the loss, and nothing but the head requires grad."""
    keywords = {name: value for name, value in keywords.items() if value is not None}
    if autocasts(head[0]):
        head, dtype = _autocast(head), dtype or _wide(head)
    device = head[0].device
    products = logits_dtype(torch.promote_types(head[0].dtype, head[1].dtype), device)
    if rows is None:
        rows = rows_per_chunk(head[1].shape[:-1].numel(), products.itemsize, workspace)
    names = [name for name, value in keywords.items() if isinstance(value, Tensor)]
    tensors = [keywords[name] for name in names]
    options = [name for name in keywords if name not in names]
    values = [keywords[name] for name in options]
    call = (loss, names, options, values, reduction, dtype or head[0].dtype, rows)
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
        return composed(*head, loss, reduction=reduction, **keywords)
    if not (differentiated and any(x is not None and x.requires_grad for x in head)):
        result: Tensor = operators.linear_loss(*head, *arguments_of(call, tensors), 0)[0]
        return result
    hooked = not torch.compiler.is_compiling() and dispatch.saved_tensors_are_hooked()
    recompute = backward == "recompute" or reduction == "none" or hooked
    result = LinearLoss.apply(*head, call, "recompute" if recompute else "fused", *tensors)
    return result


def _wide(head: Head) -> torch.dtype:
    return torch.float64 if head[0].dtype is torch.float64 else torch.float32


def _autocast(head: Head) -> Head:
    """To autocast's dtype where its products are worth it; float64 stays, as in torch."""
    device = head[0].device
    dtype = torch.get_autocast_dtype(device.type)
    if logits_dtype(dtype, device) is not dtype or head[0].dtype is torch.float64:
        return head
    input, weight, bias = head
    return input.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _divergence(
    head: Head,
    reduction: str,
    workspace: int | None,
    backward: LinearBackward,
    target: Tensor,
    log_target: bool = False,
) -> Tensor:
    """Cross-entropy of probabilities t, and the constant sum of t log t."""
    logits = (*head[0].shape[:-1], *head[1].shape[:-1])
    chunked = reduction != "none" and target.shape == logits and not target.is_sparse and _is_head(*head)
    if not chunked or (target.requires_grad and torch.is_grad_enabled()):
        log_probabilities = F.linear(*head).log_softmax(-1)
        divergence: Tensor = functional.kl_div(
            log_probabilities, target, reduction=reduction, log_target=log_target
        )
        return divergence
    probabilities = target.exp() if log_target else target
    divisors = {"sum": 1, "batchmean": logits[0], "mean": target.numel()}
    if reduction not in divisors:
        raise ValueError(f"{reduction} is not a valid value for reduction")
    wide = _wide(head)
    keywords = {"target": probabilities}
    cross = _over_head(head, "cross_entropy", keywords, "sum", workspace, backward, dtype=wide)
    constant = _negative_entropy(probabilities, rows_per_chunk(target.shape[-1], wide.itemsize, workspace))
    loss: Tensor = (cross + constant) / divisors[reduction]
    return loss if autocasts(head[0]) else loss.to(head[0].dtype)


def _negative_entropy(probabilities: Tensor, rows: int) -> Tensor:
    """The sum of t log t, without a second tensor of that size."""
    wide = torch.float64 if probabilities.dtype is torch.float64 else torch.float32
    parts = [-torch.special.entr(chunk.to(wide)).sum() for chunk in probabilities.detach().split(rows)]
    return torch.stack(parts).sum()

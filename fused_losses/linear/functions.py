"""Losses over a linear head, without its logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from fused_losses import modes
from fused_losses import unpatched as F
from fused_losses.call import SoftmaxOptions
from fused_losses.dispatch import by_override, by_torch, is_overridden, kernels_take
from fused_losses.linear.autograd import Strategy
from fused_losses.linear.choice import TRANSFORMED, over_head
from fused_losses.linear.composition import composed, warn_of_all_logits
from fused_losses.linear.divergence import divergence
from fused_losses.linear.head import Head, is_head, logits_like
from fused_losses.linear.operators import LARGEST, LSE
from fused_losses.linear.products import logits_dtype_of
from fused_losses.losses.checks import are_numbers
from fused_losses.losses.softmax_outputs import (
    CrossEntropyOutput,
    Requested,
    build_output,
    divisor_of,
    exceed_torch,
    terms_of,
)
from fused_losses.modes import autocasts
from fused_losses.names import DivergenceReductionName, LossName, ReductionName
from fused_losses.registry import LOSSES

if TYPE_CHECKING:
    from torch.nn import LinearCrossEntropyOptions

UNTAKEN = "kernels do not take these operands"


def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: ReductionName = "mean",
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    options: LinearCrossEntropyOptions | None = None,
    workspace: int | None = None,
    backward: Strategy = "fused",
    z_loss: float = 0.0,
    entropy: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    normalizer: Tensor | float | None = None,
    return_lse: bool = False,
    return_z_loss: bool = False,
    return_accuracy: bool = False,
    return_argmax: bool = False,
) -> Any:  # as a union, it would be no drop-in for whoever checks types
    r"""Cross-entropy of the logits :math:`x W^T + b`, which are never there as a whole.

    `cross_entropy(linear(input, linear_weight, linear_bias), target, ...)` with a workspace instead of the
    logits: a chunk of rows at a time, loss and gradients together. Logits are in float32 where 16 bits would
    have to be emulated, and the head's gradient is always added up in float32 (float64 for float64). See
    :func:`torch.nn.functional.linear_cross_entropy`.

    Args:
        input: (N, D) or (D).
        linear_weight: (C, D), or (C, d1, ..., D) for a loss of dimension K.
        target: class indices (N), () or (N, d1, ...), or probabilities shaped as the logits.
        linear_bias: shaped (C) or (C, d1, ...).
        weight: (C), a factor for each class.
        reduction: "none", "mean" or "sum", as :func:`cross_entropy` has them.
        ignore_index: a class that does not count; None is -100. Its rows are left out of the products.
        label_smoothing: the share of the target that label smoothing spreads evenly, in [0, 1].
        options: torch's. `batch_chunk_size` is the number of rows at a time. On a CPU, logits of 16-bit
            operands are kept in `acc_dtype`, float32 if it is None, as torch keeps them where it is given
            options; so they are not rounded to 16 bits there. The other options choose between memory and a
            second backward; this has both.
        workspace: bytes of logits at a time; 128 MiB at most if not given.
        backward: "fused": the forward makes the gradients, and holds them until the backward. "recompute":
            the backward makes the logits again, a fourth matrix product. So does every backward of
            reduction="none", of lse, and any but the first.
        z_loss: as :func:`cross_entropy` has it, and all that follow.
        entropy: the same.
        logit_scale: the same.
        softcap: the same.
        normalizer: the same.
        return_lse: the same.
        return_z_loss: the same.
        return_accuracy: the same.
        return_argmax: the same.

    Returns:
        The loss; a :class:`CrossEntropyOutput` if any more is asked for.

    Raises:
        IndexError: a class index outside [0, C) that is not ignore_index.
        RuntimeError: shapes or dtypes that do not fit.
        ValueError: another `backward`; a workspace that is not positive.

    Example:
        >>> hidden, head = torch.zeros(4, 8, requires_grad=True), torch.ones(100, 8)
        >>> loss = fused_losses.functional.linear_cross_entropy(hidden, head, torch.arange(4))
        >>> loss.backward()
        >>> loss.detach(), hidden.grad.shape
        (tensor(4.6052), torch.Size([4, 8]))
    """
    _check(workspace, backward, linear_weight, input, linear_bias)
    operands = input, linear_weight, target, linear_bias, weight
    if is_overridden(*operands):
        keywords: dict[str, Any] = {"linear_bias": linear_bias, "weight": weight, "reduction": reduction}
        keywords |= {"ignore_index": ignore_index, "label_smoothing": label_smoothing, "options": options}
        further: dict[str, Any] = {
            "z_loss": z_loss,
            "entropy": entropy,
            "logit_scale": logit_scale,
            "softcap": softcap,
            "normalizer": normalizer,
            "return_lse": return_lse,
            "return_z_loss": return_z_loss,
            "return_accuracy": return_accuracy,
            "return_argmax": return_argmax,
        }
        if not exceed_torch(further) and hasattr(F, "linear_cross_entropy"):
            return by_override(F.linear_cross_entropy, input, linear_weight, target, **keywords)
        if is_overridden(*operands, by_subclasses=False):
            keywords |= {"workspace": workspace, "backward": backward, **further}
            return by_override(linear_cross_entropy, input, linear_weight, target, **keywords)
    head = Head(input, linear_weight, linear_bias)
    terms = terms_of(z_loss, entropy, logit_scale, softcap)
    divisor = divisor_of(normalizer, reduction, input.device)
    requested = Requested(return_lse, return_z_loss, return_accuracy, return_argmax)
    are_probabilities = target.shape == input.shape[:-1] + head.classes
    if (
        input.dim() not in (1, 2)
        or (input.dim() == 1 and linear_weight.dim() != 2)
        or not is_head(head)
        or not kernels_take(input, target, weight)
        or reduction not in ("none", "mean", "sum")
        or not are_numbers(label_smoothing)
        or (are_probabilities and ignore_index is not None)
        or (weight is not None and weight.dtype is not input.dtype and not autocasts(input))
    ):
        further = {}
        function = getattr(F, "linear_cross_entropy", _composed_cross_entropy)
        if terms or divisor is not None or any(requested):
            function = _composed_cross_entropy
            further = {
                "z_loss": z_loss,
                "entropy": entropy,
                "logit_scale": logit_scale,
                "softcap": softcap,
                "normalizer": divisor,
                **{f"return_{name}": value for name, value in requested._asdict().items()},
            }
        asked = "workspace" if workspace is not None else None if options is None else "options"
        is_transformed = modes.is_transformed()
        if options is not None and function is not _composed_cross_entropy and not is_transformed:
            # Torch's function takes them, or says why not; but transformed, it raises or forgets tangents.
            further["options"], asked = options, None
        of_all: Any = by_torch(
            function,
            input,
            linear_weight,
            target,
            linear_bias=linear_bias,
            weight=weight,
            reduction=reduction,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            **further,
        )
        warn_of_all_logits("cross_entropy", asked, TRANSFORMED if is_transformed else UNTAKEN)
        return of_all
    is_single_row = input.dim() == 1
    if is_single_row:
        head, target = head._replace(input=input.unsqueeze(0)), target.unsqueeze(0)
    ignored = -100 if ignore_index is None else ignore_index
    keywords = {"target": target, "weight": weight, "normalizer": divisor}
    keywords |= {"ignore_index": ignored, "label_smoothing": label_smoothing}
    if terms:
        keywords |= {"z_loss": z_loss, "entropy": entropy, "logit_scale": logit_scale, "softcap": softcap}
    loss, *row_results = over_head(
        head,
        "cross_entropy",
        keywords,
        reduction,
        workspace if options is None else None,
        backward,
        chunk_rows=None if options is None else options.batch_chunk_size,
        logits_dtype=None if options is None else logits_dtype_of(options, input),
        row_bits=(LSE if any(requested) else 0) | (LARGEST if requested.needs_argmax else 0),
    )
    if not row_results:
        return loss.squeeze(0) if is_single_row and reduction == "none" else loss
    lse, argmax = row_results[0], row_results[1] if requested.needs_argmax else None
    result = build_output(
        requested,
        loss,
        lse,
        argmax,
        logits_like(head, input.dtype),
        target,
        weight,
        SoftmaxOptions(ignored, label_smoothing, terms, divisor),
        z_loss,
        reduction,
    )
    if not is_single_row:
        return result
    return CrossEntropyOutput._make(x.squeeze(0) if x is not None and x.dim() else x for x in result)


def linear_loss(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor | None = None,
    loss: LossName = "cross_entropy",
    *,
    linear_bias: Tensor | None = None,
    reduction: DivergenceReductionName = "mean",
    workspace: int | None = None,
    backward: Strategy = "fused",
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
        workspace: bytes of logits at a time; 128 MiB at most if not given.
        backward: "fused": the forward makes the gradients, and holds them until the backward. "recompute":
            the backward makes the logits again, as every backward of reduction="none" does, and any but the
            first.
        **options: the loss's other arguments, by name. Where a tensor among them, or target, requires grad,
            all logits are made.

    Raises:
        ValueError: a loss that this package does not have; another `backward`; a workspace that is not
            positive.
        RuntimeError: shapes or dtypes that do not fit.

    Example:
        >>> hidden, head = torch.zeros(4, 8), torch.ones(1000, 8)
        >>> labels = torch.tensor([[0, 1, 2, 3], [7, 7, 7, 7]])  # row i has label 7
        >>> target = torch.sparse_coo_tensor(labels, torch.ones(4), (4, 1000))
        >>> fused_losses.functional.linear_loss(hidden, head, target, "binary_cross_entropy_with_logits")
        tensor(0.6931)
    """
    _check(workspace, backward, linear_weight, input, linear_bias)
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {', '.join(LOSSES)}, but it is {loss!r}")
    if is_overridden(input, linear_weight, target, linear_bias, *options.values(), by_subclasses=False):
        options |= {"linear_bias": linear_bias, "reduction": reduction}
        options |= {"workspace": workspace, "backward": backward}
        overriding: Tensor = by_override(linear_loss, input, linear_weight, target, loss, **options)
        return overriding
    keywords = options if target is None else {LOSSES[loss].target_name: target, **options}
    head = Head(input, linear_weight, linear_bias)
    if loss == "kl_div":
        return divergence(head, reduction, workspace, backward, **keywords)
    if not is_head(head) or input.dim() != 2:
        result: Tensor = composed(head, loss, reduction=reduction, **keywords)
        asked = None if workspace is None else "workspace"
        warn_of_all_logits(loss, asked, TRANSFORMED if modes.is_transformed() else UNTAKEN)
        return result
    (result,) = over_head(head, loss, keywords, reduction, workspace, backward)
    return result


def _check(workspace: int | None, backward: str, *operands: Tensor | None) -> None:
    """What no head can have.

    Raises:
        ValueError: another `backward`; a workspace that is not positive.
        TypeError: a workspace that is no whole number.
        RuntimeError: input or bias on another device than the weight, the first of the operands.
    """
    if backward not in ("fused", "recompute"):
        raise ValueError(f"backward must be 'fused' or 'recompute', but it is {backward!r}")
    if workspace is not None:
        if not isinstance(workspace, int) or isinstance(workspace, bool):
            raise TypeError(f"workspace must be a number of bytes, not {type(workspace).__name__}")
        if not 0 < workspace < 2**63:  # operators take 64 bits
            raise ValueError(f"workspace must be a positive number of bytes, but it is {workspace}")
    given = [x.device for x in operands if isinstance(x, Tensor)]
    for device in given:  # a matrix product does not look, if one of them is the meta device
        if device != given[0]:
            raise RuntimeError(f"Tensor on device {device} is not on the expected device {given[0]}!")


def _composed_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    *,
    linear_bias: Tensor | None,
    ignore_index: int | None,
    **keywords: Any,
) -> Any:
    """All logits, and their loss: for options that torch's function lacks, or for a torch that lacks it."""
    ignored = -100 if ignore_index is None else ignore_index
    head = Head(input, linear_weight, linear_bias)
    return composed(head, "cross_entropy", target=target, ignore_index=ignored, **keywords)

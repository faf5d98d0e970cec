"""Softmax cross-entropy, with what else can be had of the softmax in the same pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from fused_losses import reference
from fused_losses import unpatched as F
from fused_losses.call import EVERY_REDUCTION, REDUCTIONS, Backward, Call, SoftmaxOptions
from fused_losses.dispatch import (
    by_composed,
    by_override,
    by_torch,
    is_overridden,
    kernels_take,
    run,
    run_with_rows,
)
from fused_losses.losses.checks import are_numbers, is_index, reduction_of, takes_softmax
from fused_losses.losses.plans import plans
from fused_losses.losses.softmax_outputs import (
    Requested,
    argmax_by_torch,
    build_output,
    divisor_of,
    exceed_torch,
    terms_of,
)
from fused_losses.modes import autocasts
from fused_losses.names import ReductionName


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: ReductionName = "mean",
    label_smoothing: float = 0.0,
    *,
    backward: Backward = "fused",
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
    r"""Softmax cross-entropy between logits and class indices or class probabilities.

    With :math:`q` the target's distribution over classes, smoothed by :math:`\epsilon`, the loss of a row is
    :math:`-\sum_c w_c q_c \log \mathrm{softmax}(x)_c`; see :func:`torch.nn.functional.cross_entropy`.

    What is not in torch comes in the same pass. Of given logits v, :math:`x = a v`, or with a cap k
    :math:`x = k \tanh(a v / k)`, as Gemma 2 has it. The loss of a row that counts is
    :math:`\ldots + z\,\mathrm{lse}(x)^2 - b\,H(\mathrm{softmax}(x))`: PaLM's z-loss, which holds logits
    near 0, and a reward b for the entropy H, which keeps the softmax from growing confident. Class weights do
    not multiply these two.

    Args:
        input: logits, (C), (N, C) or (N, C, d1, ...).
        target: class indices (int64 or uint8), shaped as input without C, or probabilities, shaped as input.
        weight: (C), a factor for each class.
        size_average: deprecated, see `reduction`.
        ignore_index: rows with this class index count neither in the loss nor in the mean's divisor.
        reduce: deprecated, see `reduction`.
        reduction: "none", "sum", or "mean": over the weights of the rows' classes, or over rows where the
            target holds probabilities.
        label_smoothing: the share of the target that label smoothing spreads evenly over all classes, in
            [0, 1].
        backward: "fused": this call computes the gradient, too, and keeps it until the backward, in a buffer
            of the input's size. "recompute": the backward computes it from the operands, and nothing else is
            kept; it takes the place of "fused" where the upstream gradient must be known first: for
            reduction="none" and for float16. "inplace": the gradient overwrites the input, so that no buffer
            is needed.
        z_loss: the factor z of squared log-sum-exps.
        entropy: the factor b of the entropy, which lessens the loss.
        logit_scale: the factor a of all logits.
        softcap: the cap k that logits are held within; None for no cap.
        normalizer: what the mean divides by instead: a number, or a tensor of one, as the number of items in
            all batches that a step accumulates.
        return_lse: each row's log-sum-exp, too.
        return_z_loss: the z-loss itself, too.
        return_accuracy: whether targets have the largest logit, too.
        return_argmax: the classes of the largest logits, too.

    Returns:
        The loss; a :class:`CrossEntropyOutput` if any more is asked for.

    Raises:
        IndexError: a class index outside [0, C) that is not ignore_index.
        RuntimeError: operands whose shapes or dtypes torch does not take either.
        ValueError: input and target of different numbers of rows; a cap that is not positive; a normalizer
            where nothing is divided, or of several numbers.
        TypeError: a factor that is no number.

    Example:
        >>> logits = torch.zeros(2, 4, requires_grad=True)
        >>> target = torch.tensor([0, 3])
        >>> fused_losses.functional.cross_entropy(logits, target, label_smoothing=0.1).backward()
        >>> logits.grad
        tensor([[-0.3375,  0.1125,  0.1125,  0.1125],
                [ 0.1125,  0.1125,  0.1125, -0.3375]])
        >>> fused_losses.functional.cross_entropy(logits.detach(), target, return_accuracy=True).accuracy
        tensor(0.5000)
    """
    reduction = reduction_of(backward, reduction, size_average, reduce)
    if has_torch_function_variadic(input, target, weight) and is_overridden(
        input, target, weight, by_subclasses=False
    ):
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
        if exceed_torch(further):
            further |= {"ignore_index": ignore_index, "label_smoothing": label_smoothing}
            further |= {"reduction": reduction, "backward": backward}
            return by_override(cross_entropy, input, target, weight, **further)
    options, call = _options_and_plan(
        input,
        target,
        weight,
        ignore_index,
        reduction,
        label_smoothing,
        z_loss,
        entropy,
        logit_scale,
        softcap,
        normalizer,
    )
    if not (return_lse or return_z_loss or return_accuracy or return_argmax):
        if call is not None:
            return run(call, backward)
        if options.terms or options.normalizer is not None:
            return by_composed("cross_entropy", input, target, weight, None, options, reduction)
        return by_torch(
            F.cross_entropy,
            input,
            target,
            weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )
    requested = Requested(return_lse, return_z_loss, return_accuracy, return_argmax)
    if call is not None:
        loss, lse, argmax = run_with_rows(call, backward, requested.needs_argmax)
    else:
        loss = by_composed("cross_entropy", input, target, weight, None, options, reduction)
        lse = reference.lse(input, target, options)
        argmax = argmax_by_torch(input, target, options) if requested.needs_argmax else None
    return build_output(requested, loss, lse, argmax, input, target, weight, options, z_loss, reduction)


@plans("cross_entropy")
def _plan_cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    *,
    z_loss: float = 0.0,
    entropy: float = 0.0,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    normalizer: Tensor | float | None = None,
) -> Call | None:
    _, call = _options_and_plan(
        input,
        target,
        weight,
        ignore_index,
        reduction,
        label_smoothing,
        z_loss,
        entropy,
        logit_scale,
        softcap,
        normalizer,
    )
    return call


def _options_and_plan(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
    entropy: float,
    logit_scale: float,
    softcap: float | None,
    normalizer: Tensor | float | None,
) -> tuple[SoftmaxOptions, Call | None]:
    """The operator's options, and the call that kernels run with them, if they take it.

    Raises:
        TypeError, ValueError: those of `terms_of` and `divisor_of`.
    """
    if z_loss or entropy or logit_scale != 1.0 or softcap is not None or normalizer is not None:
        terms = terms_of(z_loss, entropy, logit_scale, softcap)
        divisor = divisor_of(normalizer, reduction, input.device)
        options = SoftmaxOptions(ignore_index, label_smoothing, terms, divisor)
    else:
        options = SoftmaxOptions(ignore_index, label_smoothing)
    if not (
        kernels_take(input, target, weight)
        and reduction in EVERY_REDUCTION
        and takes_softmax(input, target, weight)
        and is_index(ignore_index)
        and are_numbers(label_smoothing)
        and 0.0 <= label_smoothing <= 1.0
        and (ignore_index < 0 or not target.is_floating_point())
    ):
        return options, None
    dtype = torch.float32 if autocasts(input) and input.dtype is not torch.float64 else None
    call = Call("cross_entropy", input, target, options, REDUCTIONS[reduction], dtype, weight)
    return options, call

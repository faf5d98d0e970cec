"""What operators refuse of the arguments that all of them share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fused_losses.operator_checks.checks import FLOATING, FLOATING_NAMES, Checks, dtype_name
from fused_losses.operator_checks.families import FAMILIES, Arguments
from fused_losses.registry import (
    ARGMAX,
    EXTRA_GRADIENT,
    INPUT_GRADIENT,
    OPTIONS,
    STATISTICS,
    TARGET_GRADIENT,
    Loss,
)

_REDUCTIONS = ("0 (none)", "1 (mean)", "2 (sum)", "3 (batchmean)")
_BITS = {
    INPUT_GRADIENT: "input",
    TARGET_GRADIENT: "target",
    EXTRA_GRADIENT: "extra",
    STATISTICS: "statistics",
    ARGMAX: "argmax",
}


def check_forward(loss: Loss, *arguments: Any) -> Arguments:
    """Checks a call of NAME or NAME_."""
    *shared, dtype, gradients = arguments
    call = _arguments(loss, shared, gradients, None)
    checks = Checks(loss.name)
    checks.devices(call.tensors)
    if dtype is not None and dtype not in FLOATING:
        checks.refuse("dtype", f"be {FLOATING_NAMES} or None", dtype_name(dtype))
    if loss.has_statistics:
        checks.absent(extra=call.extra)  # what the forward keeps is for the backward
    _check(checks, call, STATISTICS | ARGMAX if loss.has_statistics else 0)
    return call


def check_backward(loss: Loss, upstream: Tensor, *arguments: Any) -> Arguments:
    """Checks a call of NAME_backward, and all but the first two arguments of one of NAME_backward_."""
    *shared, gradients = arguments
    call = _arguments(loss, shared, gradients, upstream)
    checks = Checks(loss.name)
    checks.devices(call.tensors)
    checks.present(upstream=upstream)
    checks.floating(upstream=upstream)
    if call.reduction and upstream.numel() != 1:
        checks.refuse("upstream", "be one number, as the loss is", upstream)
    _check(checks, call, 0)
    return call


def check_scale(gradient: Tensor, factor: Tensor) -> None:
    """Checks a call of scale_."""
    checks = Checks("scale_")
    checks.devices({"gradient": gradient, "factor": factor})
    checks.present(factor=factor)
    checks.floating(gradient=gradient, factor=factor)
    if factor.numel() != 1:
        checks.refuse("factor", "be one number", factor)
    if gradient.numel() and not torch.ops.aten.is_non_overlapping_and_dense(gradient):
        checks.refuse("gradient", "be dense in memory", gradient)


def _arguments(loss: Loss, shared: list[Any], gradients: int, upstream: Tensor | None) -> Arguments:
    """The arguments by name, given those from `input` to `reduction` in the operators' order."""
    input, target, weight, extra, *options, reduction = shared
    made = OPTIONS[loss.family](*options)
    return Arguments(loss, input, target, weight, extra, made, reduction, gradients, upstream)


def _check(checks: Checks, call: Arguments, more_bits: int) -> None:
    """Checks all but devices, dtype and upstream; `more_bits` may be asked for besides gradients."""
    checks.present(target=call.target)
    batch_mean = call.loss.family == "pointwise"
    if call.reduction not in range(3 + batch_mean):
        checks.refuse("reduction", f"be one of {', '.join(_REDUCTIONS[: 3 + batch_mean])}", call.reduction)
    checks.floating(input=call.input)
    known = FAMILIES[call.loss.family](checks, call) | more_bits
    if call.gradients & ~known:
        names = ", ".join(f"{bit} ({name})" for bit, name in _BITS.items() if known & bit)
        checks.refuse("gradients", f"be a sum of some of {names}", call.gradients)

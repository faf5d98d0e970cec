"""The softmax family: cross-entropy and the negative log-likelihood, from tensors to their kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fused_losses.triton_kernels import tiling
from fused_losses.triton_kernels.iteration import Strides, index_type, merged
from fused_losses.triton_kernels.labels import LABELS_PER_STEP, label_divisor
from fused_losses.triton_kernels.launch import launch
from fused_losses.triton_kernels.nll_kernel import nll
from fused_losses.triton_kernels.operators import Call, check_shape
from fused_losses.triton_kernels.reduce import scratch
from fused_losses.triton_kernels.softmax_kernel import softmax

MEAN = 1

NO_TERMS = (0.0, 0.0, 1.0, 0.0)
"""z_loss, entropy, logit_scale and softcap."""


def run(call: Call) -> None:
    """The engine."""
    input, target = call.input, call.target
    if input.dim() == 0:
        raise RuntimeError("fused_losses: expected classes in a dimension")
    axis = 0 if input.dim() == 1 else 1
    classes = input.shape[axis]
    positions = input.shape[:axis] + input.shape[axis + 1 :]
    has_labels = not target.is_floating_point()
    check_shape(positions if has_labels else input.shape, target)
    check_shape((classes,), call.weight)
    check_shape(input.shape, call.gradients[0], call.gradients[1])
    check_shape(positions, call.losses)
    count = positions.numel()
    ignore_index, smoothing, terms, normalizer, lse_gradient = call.options
    is_nll = call.loss.name == "nll_loss"
    _check_terms(call, terms, normalizer)
    z_loss, entropy, logit_scale, softcap = terms or NO_TERMS
    check_shape(positions, lse_gradient, call.argmax)
    statistics = call.statistics
    if call.loss.has_statistics and call.upstream is not None:
        statistics = call.extra
        _check_statistics(statistics, input, 3 if entropy else 2, count)
    of_each = call.upstream if not call.reduction else None
    check_shape(positions, of_each)

    with_classes = (input, *call.gradients[:2], None if has_labels else target)
    without = (target if has_labels else None, of_each, call.losses, lse_gradient)
    sizes, bundles = _bundles(positions, axis, with_classes, without)
    x, of_input, of_probabilities, probabilities, labels, upstream, losses, of_lse = bundles
    if call.upstream is not None and call.reduction:
        upstream = (call.upstream, None)
    weight = (None,) if call.weight is None else (call.weight, call.weight.stride(0))

    wide = input.dtype is torch.float64
    given = call.upstream is not None and statistics is not None
    in_rows = input.stride(axis) == 1 or count == 1
    tiles, resident = tiling.for_softmax(
        classes,
        input.dtype.itemsize if not wide else 8,
        in_rows=in_rows,
        reads_once=not (is_nll or given),
        # Of capped logits and for an entropy, the logits have to stay beside their exponentials.
        tiles=1
        + (call.weight is not None)
        + (not has_labels)
        + (call.gradients[1] is not None)
        + (softcap != 0 or entropy != 0),
    )
    programs = tiles.programs(triton.cdiv(count, tiles.rows), input.device)
    partials, arrived = (None, None) if call.reduced is None else scratch(programs, input.device)
    divisor, counts, on_device = 1.0, False, None
    if call.reduction == MEAN:
        if normalizer is not None:
            on_device = normalizer
        elif not has_labels:
            divisor = float(count)
        elif tiling.counts_labels(programs, classes * input.dtype.itemsize):
            counts = True
        else:
            on_device = _label_divisor(labels, weight, sizes, count, classes, ignore_index, input.device)
    common: dict[str, Any] = {
        "COUNTS": counts,
        # What is ready is so for a gradient of the loss alone.
        "READY": call.ready and lse_gradient is None,
        "INDEX": index_type(count),
        "T": tl.float64 if wide else tl.float32,
        "ROWS": tiles.rows,
        "CHUNK": tiles.columns,
        "num_warps": tiles.num_warps,
    }
    ends = (call.reduced, partials, arrived, on_device, count, sizes, classes, ignore_index)
    if is_nll:
        launch(
            nll,
            programs,
            input.device,
            x,
            labels,
            weight,
            upstream,
            of_input,
            losses,
            *ends,
            divisor,
            **common,
        )
        return
    launch(
        softmax,
        programs,
        input.device,
        x,
        labels,
        probabilities,
        weight,
        upstream,
        of_input,
        of_probabilities,
        losses,
        of_lse,
        statistics,
        call.argmax,
        *ends,
        float(smoothing),
        divisor,
        float(z_loss),
        float(entropy),
        float(logit_scale),
        float(softcap),
        SMOOTHED=smoothing != 0,
        TERMS=tuple(terms or NO_TERMS) != NO_TERMS or lse_gradient is not None,
        ENTROPY=entropy != 0,
        CAPPED=softcap != 0,
        GIVEN=given,
        ROUNDED=input.dtype.itemsize == 2,
        IN_ROWS=in_rows,
        RESIDENT=resident,
        **common,
    )


def _bundles(
    positions: torch.Size, axis: int, with_classes: Sequence[Tensor | None], without: Sequence[Tensor | None]
) -> tuple[Strides, list[Any]]:
    """The sizes of positions, and for each tensor, what kernels take of it: see `softmax_kernel.softmax`."""
    tensors = [(x, True) for x in with_classes] + [(x, False) for x in without]
    strides = [
        x.stride()[:axis] + x.stride()[axis + 1 :] if has_classes else x.stride()
        for x, has_classes in tensors
        if x is not None
    ]
    sizes, found = merged(positions, strides)
    remaining = iter(found)
    bundles: list[Any] = []
    for x, has_classes in tensors:
        if x is None:
            bundles.append((None, None))
        elif has_classes:
            bundles.append((x, x.stride(axis), next(remaining)))
        else:
            bundles.append((x, next(remaining)))
    return sizes, bundles


def _check_terms(call: Call, terms: Sequence[float], normalizer: Tensor | None) -> None:
    if terms and (call.loss.name == "nll_loss" or len(terms) != len(NO_TERMS)):
        raise RuntimeError("fused_losses: expected four terms of a softmax")
    if normalizer is not None and (normalizer.dim() or normalizer.dtype is not torch.float64):
        raise RuntimeError("fused_losses: expected a normalizer of float64, without dimensions")


def _check_statistics(statistics: Tensor | None, input: Tensor, rows: int, positions: int) -> None:
    if statistics is None:
        return
    dtype = torch.float64 if input.dtype is torch.float64 else torch.float32
    if (
        statistics.shape != (rows, positions)
        or statistics.dtype is not dtype
        or not statistics.is_contiguous()
    ):
        raise RuntimeError("fused_losses: these are not the statistics of this input")


def _label_divisor(
    labels: Any, weight: Any, sizes: Any, count: int, classes: int, ignore_index: int, device: torch.device
) -> Tensor:
    tiles = tiling.Tiling(1, LABELS_PER_STEP.value, tiling.LEAST_WARPS)
    programs = tiles.programs(triton.cdiv(count, tiles.columns), device)
    divisor = torch.empty((), dtype=torch.float64, device=device)
    launch(
        label_divisor,
        programs,
        device,
        labels,
        weight,
        sizes,
        count,
        classes,
        ignore_index,
        divisor,
        *scratch(programs, device),
        INDEX=index_type(count),
        BLOCK=LABELS_PER_STEP.value,
        num_warps=tiles.num_warps,
    )
    return divisor

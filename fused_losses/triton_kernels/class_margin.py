"""The class margin losses, from tensors to their kernels."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fused_losses.triton_kernels import tiling
from fused_losses.triton_kernels.class_margin_one_target import multi_margin
from fused_losses.triton_kernels.class_margin_several_targets import multilabel_margin
from fused_losses.triton_kernels.launch import launch
from fused_losses.triton_kernels.operators import Call, check_shape
from fused_losses.triton_kernels.reduce import scratch

MEAN = 1


def run(call: Call) -> None:
    """The engine. A loss without parameters is the one that takes lists of targets."""
    input, target = call.input, call.target
    if target.dtype is not torch.int64 or not 1 <= input.dim() <= 2 or call.extra is not None:
        raise RuntimeError("fused_losses: expected scores of one or two dimensions and int64 targets")
    rows, classes = (1, *input.shape)[-2:]
    (parameters,) = call.options
    of_each = call.upstream if not call.reduction else None
    lists = not parameters
    if lists:
        check_shape(input.shape, target)
    for tensor, count in ((None if lists else target, rows), (call.weight, classes), (of_each, rows)):
        if tensor is not None and (tensor.numel() != count or tensor.dim() > 1):
            raise RuntimeError("fused_losses: expected as many numbers as there are rows or classes")
    of_input = call.gradients[0]
    check_shape(input.shape, of_input)
    check_shape(input.shape[:-1], call.losses)

    wide = input.dtype is torch.float64
    tiles, resident = tiling.for_class_margin(classes, wide, lists)
    if lists and not resident and of_input is not None and of_input.data_ptr() == input.data_ptr():
        # Its targets' scores are needed to the end.
        input = input.clone()
    upstream = (None, None) if of_each is None else (of_each, (_only_stride(of_each),))
    if call.upstream is not None and call.reduction:
        upstream = (call.upstream, None)
    programs = tiles.programs(triton.cdiv(rows, tiles.rows), input.device)
    partials, arrived = (None, None) if call.reduced is None else scratch(programs, input.device)
    results = (upstream, _bundle(of_input), call.losses, call.reduced, partials, arrived, rows, classes)
    divisor = float(rows) if call.reduction == MEAN else 1.0
    common: dict[str, Any] = {
        "READY": call.ready,
        "T": tl.float64 if wide else tl.float32,
        "CHUNK": tiles.columns,
        "num_warps": tiles.num_warps,
    }
    if lists:
        operands = (_bundle(input), _bundle(target))
        launch(
            multilabel_margin,
            programs,
            input.device,
            *operands,
            *results,
            divisor,
            RESIDENT=resident,
            **common,
        )
        return
    labels = (target, (_only_stride(target),))
    weight = (None,) if call.weight is None else (call.weight, _only_stride(call.weight))
    power, margin = parameters
    launch(
        multi_margin,
        programs,
        input.device,
        _bundle(input),
        labels,
        weight,
        *results,
        margin,
        divisor,
        POWER=int(power),
        ROWS=tiles.rows,
        **common,
    )


def _bundle(tensor: Tensor | None) -> Any:
    """The tensor, its stride along classes, and (its stride along rows,)."""
    if tensor is None:
        return (None,)
    return tensor, tensor.stride(-1), (tensor.stride(0) if tensor.dim() == 2 else 0,)


def _only_stride(tensor: Tensor) -> int:
    return tensor.stride(0) if tensor.dim() else 0

"""The engine of the class margins: multi_margin_loss and multilabel_margin_loss, of scores (N, C) or (C).

`run` makes a launch of what it is asked for. A loss with parameters has one target in each row, and
`class_margin_one_target.py` its kernel; the one without has several, in `class_margin_several_targets.py`.
Both take value and derivative of a gap between two classes from `formulas/class_margin.py`.
"""

from typing import Any

import triton.language as tl

from fused_losses.call import Reduction
from fused_losses.triton_kernels import tiling
from fused_losses.triton_kernels.class_margin_one_target import multi_margin
from fused_losses.triton_kernels.class_margin_several_targets import multilabel_margin
from fused_losses.triton_kernels.iteration import compute_dtype, index_type, position_arguments
from fused_losses.triton_kernels.launch import launch
from fused_losses.triton_kernels.operators import EngineCall
from fused_losses.triton_kernels.packs import pack_of_rows
from fused_losses.triton_kernels.reduce import reduction_arguments


def run(call: EngineCall) -> None:
    """Writes what is asked for of a class margin."""
    input, target = call.input, call.target
    axis = input.dim() - 1
    positions, classes = input.shape[:-1], input.shape[-1]
    count = positions.numel()
    (parameters,) = call.options
    several = not parameters
    gradient = call.gradients[0]

    dtype = compute_dtype(input)
    if several:
        tile, resident = tiling.for_several_targets(classes, is_float64=dtype is tl.float64)
        if not resident and gradient is not None and gradient.data_ptr() == input.data_ptr():
            # The scores of its targets are needed to the end.
            input = input.clone()
    upstream = call.losses_upstream
    sizes, with_classes, numbers_of_rows = position_arguments(
        input.shape,
        axis,
        range(axis + 1),
        [input, gradient, *([target] if several else [])],
        [
            None if upstream is None else upstream.reshape(positions),
            call.losses,
            *([] if several else [target.reshape(positions)]),
        ],
    )
    x, grad_input, *lists = with_classes
    losses_upstream, losses, *labels = numbers_of_rows
    if not several:
        pack = pack_of_rows(classes, sizes, with_classes)
        tile = tiling.for_one_target(classes, input.element_size(), pack)
    programs = tile.programs(count, input.device)
    arguments: dict[str, Any] = {
        "x": x,
        "labels": (lists or labels)[0],
        "losses_upstream": losses_upstream,
        "grad_input": grad_input,
        "losses": losses,
        **reduction_arguments(call, programs),
        "rows": count,
        "classes": classes,
        # Without rows, the mean is 0.
        "divisor": float(max(count, 1)) if call.reduction == Reduction.MEAN else 1.0,
    }
    constants: dict[str, Any] = {
        "READY": call.ready,
        "DTYPE": dtype,
        "num_warps": tile.num_warps,
    }
    if several:
        launch(
            multilabel_margin,
            programs,
            input.device,
            arguments,
            CHUNK=tile.columns,
            RESIDENT=resident,
            **constants,
        )
        return
    power, margin = parameters
    weight = (None,) if call.weight is None else (call.weight, call.weight.expand(classes).stride(0))
    launch(
        multi_margin,
        programs,
        input.device,
        {**arguments, "weight": weight, "margin": margin},
        POWER=int(power),
        INDEX=index_type(count),
        WHOLE=tile.columns >= classes,
        PACK=pack,
        ROWS=tile.rows,
        PARTS=tile.parts,
        WIDTH=tile.width,
        **constants,
    )

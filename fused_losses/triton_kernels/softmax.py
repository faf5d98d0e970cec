"""The engine of the softmax family, cross_entropy and nll_loss: from tensors to the launch of a kernel.

`run` makes what kernels take of the tensors, chooses a tile, finds what a mean is
divided by (`_divisor`), and launches `softmax_kernel.softmax` or `nll_kernel.nll`.
"""

from __future__ import annotations

from typing import Any

from fused_losses.call import Reduction
from fused_losses.triton_kernels import tiling
from fused_losses.triton_kernels.iteration import compute_dtype, index_type, position_arguments
from fused_losses.triton_kernels.labels import launch_label_divisor
from fused_losses.triton_kernels.launch import launch
from fused_losses.triton_kernels.nll_kernel import nll
from fused_losses.triton_kernels.operators import EngineCall
from fused_losses.triton_kernels.packs import has_even_positions, pack_of_rows, shifted_pack
from fused_losses.triton_kernels.reduce import reduction_arguments
from fused_losses.triton_kernels.softmax_kernel import softmax

NO_TERMS = (0.0, 0.0, 1.0, 0.0)
"""z_loss, entropy, logit_scale and softcap that have no effect."""


def run(call: EngineCall) -> None:
    """Writes what is asked for of a loss of the softmax family."""
    input, target = call.input, call.target
    axis = 0 if input.dim() == 1 else 1
    classes = input.shape[axis]
    positions = input.shape[:axis] + input.shape[axis + 1 :]
    count = positions.numel()
    ignore_index, smoothing, terms, normalizer, lse_gradient = call.options
    is_nll = call.loss.name == "nll_loss"
    has_labels = not target.is_floating_point()
    # A backward gets as its third operand what the forward has written.
    is_backward = call.upstream is not None
    statistics = call.extra if is_backward and call.loss.has_statistics else call.statistics
    given = is_backward and statistics is not None
    z_loss, entropy, logit_scale, softcap = terms or NO_TERMS

    sizes, with_classes, numbers = position_arguments(
        input.shape,
        axis,
        range(input.dim()),
        [input, *call.gradients[:2], None if has_labels else target],
        [target if has_labels else None, call.losses_upstream, call.losses, lse_gradient],
    )
    x, grad_input, grad_probabilities, probabilities = with_classes
    labels, losses_upstream, losses, lse_gradient_argument = numbers
    weight = (None,) if call.weight is None else (call.weight, call.weight.stride(0))

    in_rows = input.stride(axis) == 1 or count == 1
    pack = pack_of_rows(classes, sizes, with_classes) if in_rows else 1
    # More than the largest logit and the sum would be too many numbers of both a row's block and its ends.
    is_simple = has_labels and smoothing == 0 and entropy == 0 and call.argmax is None
    shifted = shifted_pack(classes, sizes, with_classes) if is_simple and not is_nll else None
    if shifted is not None:
        pack = shifted
    tile = tiling.for_softmax(
        classes,
        input.dtype.itemsize,
        pack=pack if in_rows else None,
        even=has_even_positions(sizes, with_classes),
        reads_once=not (is_nll or given),
        # If logits are capped, and for an entropy, they have to stay beside their exponentials.
        tensors=1
        + (call.weight is not None and (smoothing != 0 or not has_labels))
        + (not has_labels)
        + (call.gradients[1] is not None)
        + (softcap != 0 or entropy != 0),
    )
    programs = tile.programs(count, input.device)
    divisor, divisor_on_device, counts = 1.0, None, False
    if call.reduction == Reduction.MEAN:
        if normalizer is not None:
            divisor_on_device = normalizer
        elif not has_labels:
            divisor = float(count)
        elif tiling.counts_labels(programs, classes * input.dtype.itemsize):
            counts = True
        else:
            divisor_on_device = launch_label_divisor(
                labels, weight, sizes, count, classes, ignore_index, input.device
            )
    arguments: dict[str, Any] = {
        "x": x,
        "labels": labels,
        "weight": weight,
        "losses_upstream": losses_upstream,
        "grad_input": grad_input,
        "losses": losses,
        **reduction_arguments(call, programs),
        "divisor": divisor,
        "divisor_ptr": divisor_on_device,
        "positions": count,
        "sizes": sizes,
        "classes": classes,
        "ignore_index": ignore_index,
    }
    constants: dict[str, Any] = {
        "COUNTS": counts,
        # What is ready is so for a gradient of the loss alone.
        "READY": call.ready and lse_gradient is None,
        "INDEX": index_type(count),
        "DTYPE": compute_dtype(input),
        "ROWS": tile.rows,
        "PACK": pack,
        "PARTS": tile.parts,
        "WIDTH": tile.width,
        "num_warps": tile.num_warps,
    }
    if is_nll:
        launch(nll, programs, input.device, arguments, **constants)
        return
    launch(
        softmax,
        programs,
        input.device,
        {
            **arguments,
            "probabilities": probabilities,
            "grad_probabilities": grad_probabilities,
            "lse_gradient": lse_gradient_argument,
            "statistics_ptr": statistics,
            "argmax_ptr": call.argmax,
            "smoothing": float(smoothing),
            "z_loss": float(z_loss),
            "entropy": float(entropy),
            "logit_scale": float(logit_scale),
            "softcap": float(softcap),
        },
        SMOOTHED=smoothing != 0,
        TERMS=z_loss != 0 or entropy != 0 or lse_gradient is not None,
        SCALED=logit_scale != 1,
        ENTROPY=entropy != 0,
        CAPPED=softcap != 0,
        GIVEN=given,
        SPAN=None if in_rows else tile.span,
        ROUNDED=input.dtype.itemsize == 2,
        IN_ROWS=in_rows,
        SHIFTED=shifted is not None,
        RESIDENT=tile.columns >= classes,
        **constants,
    )

"""The operator scale_: a gradient that overwrote its logits cannot be computed again, only multiplied."""

import triton
import triton.language as tl
from torch import Tensor

from fused_losses.triton_kernels import tiling
from fused_losses.triton_kernels.iteration import compute_dtype, turns
from fused_losses.triton_kernels.launch import launch
from fused_losses.triton_kernels.memory import store


@triton.jit
def scale(gradient_ptr, factor_ptr, count: "i64", DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    """Multiplies a gradient, `count` numbers in memory, by a factor, ().

    A factor of 1, the usual upstream gradient, leaves the memory untouched. A 0 stays 0 even if the factor is
    infinite or NaN: it may be the gradient of an ignored row, which torch does not multiply either.
    """
    factor = tl.load(factor_ptr).to(DTYPE)
    if factor == 1:
        return
    first, end, step = turns(count, BLOCK, tl.int64)
    for begin in range(first, end, step):
        i = begin + tl.arange(0, BLOCK)
        mask = i < end
        values = tl.load(gradient_ptr + i, mask=mask).to(DTYPE)
        store(gradient_ptr + i, tl.where(values == 0, values, values * factor), mask)


def run(gradient: Tensor, factor: Tensor) -> None:
    """The operator: a dense gradient of any shape and floating dtype, in place, times a factor, ()."""
    tile, _ = tiling.for_pointwise([gradient.element_size()])
    launch(
        scale,
        tile.programs(gradient.numel(), gradient.device),
        gradient.device,
        {"gradient_ptr": gradient, "factor_ptr": factor, "count": gradient.numel()},
        DTYPE=compute_dtype(gradient),
        BLOCK=tile.rows,
        num_warps=tile.num_warps,
    )

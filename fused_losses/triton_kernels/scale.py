"""The operator scale_: a gradient that overwrote its logits cannot be computed again, only multiplied."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fused_losses.triton_kernels import tiling
from fused_losses.triton_kernels.iteration import turns
from fused_losses.triton_kernels.launch import launch


@triton.jit
def scale(gradient_ptr, factor_ptr, count: "i64", T: tl.constexpr, BLOCK: tl.constexpr):
    """A factor of 1, the usual upstream gradient, leaves the memory untouched."""
    factor = tl.load(factor_ptr).to(T)
    if factor == 1:
        return
    first, end, step = turns(count, BLOCK, tl.int64)
    for begin in range(first, end, step):
        i = begin + tl.arange(0, BLOCK)
        mask = i < end
        scaled = tl.load(gradient_ptr + i, mask=mask).to(T) * factor
        tl.store(gradient_ptr + i, scaled.to(gradient_ptr.dtype.element_ty), mask=mask)


def run(gradient: Tensor, factor: Tensor) -> None:
    """The operator."""
    if not torch.ops.aten.is_non_overlapping_and_dense(gradient):
        raise RuntimeError("fused_losses: scale_ needs a dense tensor")
    tiles = tiling.for_pointwise(gradient.element_size())
    programs = tiles.programs(triton.cdiv(gradient.numel(), tiles.columns), gradient.device)
    wide = gradient.dtype is torch.float64
    launch(
        scale,
        programs,
        gradient.device,
        gradient,
        factor,
        gradient.numel(),
        T=tl.float64 if wide else tl.float32,
        BLOCK=tiles.columns,
        num_warps=tiles.num_warps,
    )

"""The matrix products of a linear head, which make logits and, from their gradient, that of rows and head."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:  # torch 2.11 does not have it
    from torch.nn import LinearCrossEntropyOptions

BLOCK = 4 * 2**20
"""Bytes of the head that a CPU multiplies at a time: they stay in cache for both gradients, and are what is
converted of a head of 16 bits. Measured: a chunk of rows times so much is as fast as all rows times all of
it."""


def logits_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Of the workspace: float32 rather than 16 bits on a CPU that has no instructions for their products."""
    if dtype in (torch.float32, torch.float64) or device.type != "cpu":
        return dtype
    return dtype if _cpu_multiplies(dtype) else torch.float32


def logits_dtype_of(options: LinearCrossEntropyOptions, input: Tensor) -> torch.dtype | None:
    """The workspace's dtype that torch's options ask for; None where they leave it to `logits_dtype`."""
    if input.dtype in (torch.float32, torch.float64) or input.device.type != "cpu":
        return None
    return options.acc_dtype or torch.float32


def _cpu_multiplies(dtype: torch.dtype) -> bool:
    names = {
        torch.bfloat16: ("_is_amx_tile_supported", "_is_avx512_bf16_supported"),
        torch.float16: ("_is_amx_fp16_supported",),
    }
    return any(getattr(torch.cpu, name, bool)() for name in names[dtype])


class Products:
    """Of one head, and the sums of its gradients over chunks, in float32 (float64 for float64)."""

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        of_input: bool,
        of_weight: bool,
        of_bias: bool,
    ) -> None:
        self._weight, self._bias, self._dtype = weight, bias, dtype
        self._wide = torch.float64 if dtype is torch.float64 else torch.float32
        self._of_input = of_input
        self._converted: Tensor | None = None
        self.weight_gradient = weight.new_zeros(weight.shape, dtype=self._wide) if of_weight else None
        self.bias_gradient = weight.new_zeros(weight.shape[:1], dtype=self._wide) if of_bias else None

    def _blocks(self) -> Iterator[slice]:
        classes, features = self._weight.shape
        block = classes
        if self._weight.device.type == "cpu":
            block = max(1, BLOCK // (self._wide.itemsize * max(1, features)))
        for begin in range(0, classes, block):
            yield slice(begin, min(begin + block, classes))

    def _weight_of(self, block: slice) -> Tensor:
        """In the logits' dtype; converted into memory that is there, since a heap may keep what is freed."""
        weight = self._weight[block]
        if weight.dtype is self._dtype or weight.device.type != "cpu":
            return weight.to(self._dtype)
        if self._converted is None:
            self._converted = weight.new_empty(weight.shape, dtype=self._dtype)
        return self._converted[: weight.shape[0]].copy_(weight)

    def logits(self, x: Tensor, out: Tensor) -> None:
        """Of rows x, in the logits' dtype."""
        for block in self._blocks():
            weight = self._weight_of(block).t()
            if self._bias is None:
                torch.mm(x, weight, out=out[:, block])
            else:
                torch.addmm(self._bias[block].to(self._dtype), x, weight, out=out[:, block])

    def gradients(self, gradient: Tensor, x: Tensor) -> Tensor | None:
        """Adds to the head's gradients, and returns that of rows x, given that of their logits."""
        wide = self._dtype is self._wide
        by_gpu = not wide and gradient.is_cuda
        of_x = None
        if self._of_input and not by_gpu:
            of_x = x.new_zeros(x.shape, dtype=self._wide)
        for block in self._blocks():
            part = gradient[:, block]
            if of_x is not None:
                # Each block by itself: of 131072 classes, the sum of blocks' sums has less than half the
                # error of one product. Products of 16 bits are rounded to 16 bits by a CPU.
                of_x.add_(torch.mm(part, self._weight_of(block)))
            elif self._of_input:
                of_x = torch.mm(part, self._weight.to(self._dtype), out_dtype=self._wide)
            if self.weight_gradient is not None:
                into = self.weight_gradient[block]
                if wide:
                    into.addmm_(part.t(), x)
                elif by_gpu:
                    torch.addmm(into, part.t(), x, out_dtype=self._wide, out=into)
                else:
                    into.add_(torch.mm(part.t(), x))
        if self.bias_gradient is not None:
            self.bias_gradient.add_(gradient.sum(0, dtype=self._wide))
        return of_x

"""The matrix products of a linear head, which make logits and, from their gradient, that of rows and head."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fused_losses.call import accumulate_dtype

if TYPE_CHECKING:  # torch 2.11 does not have it
    from torch.nn import LinearCrossEntropyOptions

BLOCK_BYTES = 4 * 2**20
"""Bytes of the head that a CPU multiplies at a time. They stay in cache for both gradients, and so much of a
16-bit head is converted at a time. Measured: a chunk of rows times so much is as fast as all rows times all
of the head."""


def choose_logits_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The workspace's dtype: the head's, but float32 on a CPU that has no instructions for its products."""
    if dtype in (torch.float32, torch.float64) or device.type != "cpu":
        return dtype
    return dtype if _cpu_multiplies(dtype) else torch.float32


def logits_dtype_of(options: LinearCrossEntropyOptions, input: Tensor) -> torch.dtype | None:
    """The workspace's dtype that options of torch ask for; None where they leave it to the device."""
    if input.dtype in (torch.float32, torch.float64) or input.device.type != "cpu":
        return None
    return options.acc_dtype or torch.float32


def _has_products(*names: str) -> bool:
    """Whether torch.cpu has one of these questions, and answers it with yes."""
    return any(getattr(torch.cpu, name, bool)() for name in names)


# Asked at import, since torch.compile does not trace these questions.
_CPU_PRODUCTS = {
    torch.bfloat16: _has_products("_is_amx_tile_supported", "_is_avx512_bf16_supported"),
    torch.float16: _has_products("_is_amx_fp16_supported"),
}


def _cpu_multiplies(dtype: torch.dtype) -> bool:
    """Whether the CPU has instructions for matrix products of this 16-bit dtype."""
    return _CPU_PRODUCTS[dtype]


class Products:
    """The products of one head, and the sums of its gradients over chunks, float32 or float64.

    Args:
        weight: (V, D).
        bias: (V) or None.
        dtype: the logits'.
        input_wanted: whether gradients of the input are wanted.
        weight_wanted: whether the gradient of the weight is.
        bias_wanted: whether the gradient of the bias is.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        input_wanted: bool,
        weight_wanted: bool,
        bias_wanted: bool,
    ) -> None:
        self._weight, self._bias, self._dtype = weight, bias, dtype
        self._sum_dtype = accumulate_dtype(dtype)
        self._input_wanted = input_wanted
        self._converted: Tensor | None = None
        self.weight_gradient = (
            weight.new_zeros(weight.shape, dtype=self._sum_dtype) if weight_wanted else None
        )
        self.bias_gradient = (
            weight.new_zeros(weight.shape[:1], dtype=self._sum_dtype) if bias_wanted else None
        )

    def _blocks(self) -> Iterator[slice]:
        """The rows of the weight that are multiplied at a time: all on a GPU, `BLOCK_BYTES` on a CPU."""
        classes, features = self._weight.shape
        block = classes
        if self._weight.device.type == "cpu":
            block = max(1, BLOCK_BYTES // (self._sum_dtype.itemsize * max(1, features)))
        for begin in range(0, classes, block):
            yield slice(begin, min(begin + block, classes))

    def _weight_of(self, block: slice) -> Tensor:
        """Some rows of the weight, in the logits' dtype.

        They are converted into the same memory each time, since a heap may keep what is freed.
        """
        weight = self._weight[block]
        if weight.dtype is self._dtype or weight.device.type != "cpu":
            return weight.to(self._dtype)
        if self._converted is None:
            self._converted = weight.new_empty(weight.shape, dtype=self._dtype)
        return self._converted[: weight.shape[0]].copy_(weight)

    def logits(self, x: Tensor, out: Tensor) -> None:
        """Writes the logits of rows x (n, D), in the logits' dtype, to out (n, V)."""
        for block in self._blocks():
            weight = self._weight_of(block).t()
            if self._bias is None:
                torch.mm(x, weight, out=out[:, block])
            else:
                torch.addmm(self._bias[block].to(self._dtype), x, weight, out=out[:, block])

    def gradients(self, gradient: Tensor, x: Tensor) -> Tensor | None:
        """Adds to the head's gradients, given the gradient (n, V) of the logits of rows x (n, D).

        Returns:
            The gradient of x (n, D), in the dtype of sums, if it is wanted.
        """
        sums_in_logits_dtype = self._dtype is self._sum_dtype
        by_gpu = not sums_in_logits_dtype and gradient.is_cuda
        x_gradient = None
        if self._input_wanted and not by_gpu:
            x_gradient = x.new_zeros(x.shape, dtype=self._sum_dtype)
        for block in self._blocks():
            part = gradient[:, block]
            if x_gradient is not None:
                # Each block by itself: of 131072 classes, the sum of blocks' sums has less than half the
                # error of one product. A CPU rounds products of 16 bits to 16 bits.
                x_gradient.add_(torch.mm(part, self._weight_of(block)))
            elif self._input_wanted:
                x_gradient = torch.mm(part, self._weight.to(self._dtype), out_dtype=self._sum_dtype)
            if self.weight_gradient is not None:
                into = self.weight_gradient[block]
                if sums_in_logits_dtype:
                    into.addmm_(part.t(), x)
                elif by_gpu:
                    torch.addmm(into, part.t(), x, out_dtype=self._sum_dtype, out=into)
                else:
                    into.add_(torch.mm(part.t(), x))
        if self.bias_gradient is not None:
            self.bias_gradient.add_(gradient.sum(0, dtype=self._sum_dtype))
        return x_gradient

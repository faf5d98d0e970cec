"""The loop over chunks of rows: logits, then what a kernel makes of them, then gradients of the head."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from fused_losses.call import accumulate_dtype
from fused_losses.linear.chunks import put, take
from fused_losses.linear.head import Head
from fused_losses.linear.products import Products

Kernel = Callable[[Any, Tensor], None]
"""A function of the rows of a chunk, a slice or indices, and their logits (n, C, d1, ...), which it turns
into their gradient if one is wanted."""


def over_chunks(
    head: Head,
    chunks: Iterable[slice | Tensor],
    chunk_rows: int,
    logits_dtype: torch.dtype,
    wanted: tuple[bool, bool, bool],
    kernel: Kernel,
) -> list[Tensor | None]:
    """Runs a kernel on the logits of all chunks.

    Args:
        head: the layer; input (N, D).
        chunks: the rows of each chunk, at most `chunk_rows` of them.
        chunk_rows: how many rows the workspace holds.
        logits_dtype: the workspace's dtype.
        wanted: whether the gradients of input, weight and bias are wanted.
        kernel: what is called for each chunk.

    Returns:
        The gradients of input, weight and bias, shaped as these, or None; float32 (float64 for float64).
    """
    input, weight, bias = head
    products = Products(
        weight.flatten(0, -2),
        None if bias is None else bias.reshape(-1),
        logits_dtype,
        *wanted,
    )
    input_gradient = None
    if wanted[0]:
        input_gradient = input.new_zeros(input.shape, dtype=accumulate_dtype(logits_dtype))
    workspace = input.new_empty((chunk_rows, head.classes.numel()), dtype=logits_dtype)
    for rows in chunks:
        x = take(input, rows).to(logits_dtype)
        logits = workspace[: x.shape[0]]
        products.logits(x, logits)
        kernel(rows, logits.view(x.shape[0], *head.classes))
        if any(wanted):
            x_gradient = products.gradients(logits, x)
            if input_gradient is not None and x_gradient is not None:
                put(input_gradient, rows, x_gradient)
    weight_gradient, bias_gradient = products.weight_gradient, products.bias_gradient
    return [
        input_gradient,
        None if weight_gradient is None else weight_gradient.view(weight.shape),
        None if bias_gradient is None else bias_gradient.view(head.classes),
    ]

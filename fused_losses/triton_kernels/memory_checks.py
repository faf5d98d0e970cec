"""What operators refuse of the memory that tensors lie in: too short, or written to while it is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fused_losses.fakes import check_into, check_layout, gradient_layouts
from fused_losses.operator_checks import (
    Arguments,
    Checks,
    check_backward,
    check_forward,
    check_scale,
    describe,
)
from fused_losses.registry import INPUT_GRADIENT, Loss

_OVERLAP = (
    "unsupported operation: some elements of the input tensor and the written-to tensor refer to a single "
    "memory location. Please clone() the tensor before performing the operation."
)
"""What torch says of its own operators that write to what they read."""


def checked(
    loss: Loss,
    run_forward: Callable[..., Any],
    run_forward_inplace: Callable[..., Any],
    run_backward: Callable[..., Any],
    run_backward_into: Callable[..., Any],
) -> tuple[Callable[..., Any], ...]:
    """The four operators of a loss, which check their arguments first."""
    checks = Checks(loss.name)

    def forward(*arguments: Any) -> Any:
        _check_storages(checks, check_forward(loss, *arguments).tensors)
        return run_forward(*arguments)

    def forward_inplace(*arguments: Any) -> Any:
        call = check_forward(loss, *arguments)
        _check_storages(checks, call.tensors)
        check_layout(checks, "input", call.input, gradient_layouts(call, INPUT_GRADIENT)[0])
        for name, tensor in call.tensors.items():
            if name != "input" and tensor is not None:
                _check_disjoint(checks, name, tensor, "input", call.input)
        return run_forward_inplace(*arguments)

    def backward(upstream: Tensor, *arguments: Any) -> Any:
        _check_storages(checks, check_backward(loss, upstream, *arguments).tensors)
        return run_backward(upstream, *arguments)

    def backward_into(into: list[Tensor], ready: bool, upstream: Tensor, *arguments: Any) -> None:
        call = check_backward(loss, upstream, *arguments)
        _check_storages(checks, call.tensors)
        _check_into(checks, call, into)
        run_backward_into(into, ready, upstream, *arguments)

    return forward, forward_inplace, backward, backward_into


def checked_scale(scale: Callable[[Tensor, Tensor], None]) -> Callable[[Tensor, Tensor], None]:
    """The operator scale_, which checks its arguments first."""
    checks = Checks("scale_")

    def checked(gradient: Tensor, factor: Tensor) -> None:
        check_scale(gradient, factor)
        _check_storages(checks, {"gradient": gradient, "factor": factor})
        _check_disjoint(checks, "factor", factor, "gradient", gradient)
        scale(gradient, factor)

    return checked


def _bytes(tensor: Tensor) -> int:
    """The number of bytes from the first element's begin to the last one's end; 0 without elements."""
    if tensor.numel() == 0:
        return 0
    steps = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (steps + 1) * tensor.element_size()


def _check_storages(checks: Checks, tensors: dict[str, Tensor | None]) -> None:
    """Checks that tensors lie within their storages, which may have been resized under them."""
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        available = tensor.untyped_storage().nbytes()
        if tensor.numel() and tensor.storage_offset() * tensor.element_size() + _bytes(tensor) > available:
            found = f"{describe(tensor)} in a storage of {available} bytes"
            checks.refuse(name, "lie within its storage", found)


def _check_disjoint(checks: Checks, name: str, tensor: Tensor, written_name: str, written: Tensor) -> None:
    """Checks that two tensors have no byte in common between their first and last elements.

    Those on the meta device have no bytes.
    """
    if tensor.is_meta:
        return
    begin, end = tensor.data_ptr(), tensor.data_ptr() + _bytes(tensor)
    if begin < written.data_ptr() + _bytes(written) and written.data_ptr() < end:
        expected = f"share no memory with {written_name}, which is written to"
        checks.refuse(name, expected, f"in the same memory: {_OVERLAP}")


def _check_into(checks: Checks, call: Arguments, into: list[Tensor]) -> None:
    """Checks that what is written to is not read; only the input may be overwritten by its own gradient."""
    check_into(call, into)
    _check_storages(checks, {f"into[{k}]": x for k, x in enumerate(into)})
    for k, tensor in enumerate(into):
        for other in into[:k]:
            _check_disjoint(checks, "into", other, "another one", tensor)
        overwrites_input = k == 0 and call.gradients & INPUT_GRADIENT and _is_same(call.input, tensor)
        for name, read in call.tensors.items():
            if read is not None and not (overwrites_input and name == "input"):
                _check_disjoint(checks, name, read, "into", tensor)


def _is_same(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()

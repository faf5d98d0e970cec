"""What holds when a loss is called: what autocast, torch.func, tracers, hooks and users ask for at the time.

What a user asks for is a context variable, so that threads and asynchronous tasks do not hear of each other.
torch.compile of torch 2.11 cannot read context variables: code that it traces asks `is_compiling` first.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling as is_compiling
from torch.overrides import _get_current_function_mode_stack

PREFERRED = os.environ.get("FUSED_LOSSES_BACKEND") or "compiled"
"""Whose kernels are preferred where no one says otherwise."""

_is_any_autocast_enabled = torch._C._is_any_autocast_enabled
_are_functorch_transforms_active = torch._C._are_functorch_transforms_active
_len_torch_dispatch_stack = torch._C._len_torch_dispatch_stack

_BYSTANDERS = ("torch.utils._device", "torch.fx.experimental.proxy_tensor")
"""Where the modes are defined that let functions be what they are: the default device, which has to do with
new tensors alone, and the notes that make_fx takes while it traces operators."""

_get_tracing_state = torch._C._get_tracing_state
_is_torch_function_mode_enabled = torch._C._is_torch_function_mode_enabled

_STRICT = os.environ.get("FUSED_LOSSES_STRICT") == "1"

strict: ContextVar[bool] = ContextVar("strict", default=_STRICT)
"""Whether to raise rather than quietly run torch's function where the kernels do not take a call."""

decisions: ContextVar[list[str] | None] = ContextVar("decisions", default=None)
"""Where `explain` wants to hear what runs; see `hear`."""

_explanations = 0
"""How many calls of `explain` are under way, in all threads; without any, `decisions` is not asked."""

_explanations_lock = threading.Lock()

backend: ContextVar[str] = ContextVar("backend", default=PREFERRED)
"""Whose kernels are preferred: "compiled" or "triton"."""


@contextmanager
def explained() -> Iterator[list[str]]:
    """Collects what runs within the `with` block, in this thread or task."""
    global _explanations
    heard: list[str] = []
    with _explanations_lock:
        _explanations += 1
    token = decisions.set(heard)
    try:
        yield heard
    finally:
        decisions.reset(token)
        with _explanations_lock:
            _explanations -= 1


def hear() -> list[str] | None:
    """Where `explain` wants to hear what runs; None if it is not under way, or a compiler looks."""
    return decisions.get() if _explanations and not is_compiling() else None


def prefer(name: str | None) -> AbstractContextManager[None]:
    """Prefers the kernels of a backend within the `with` block; None changes nothing."""
    return _NOTHING if name is None or name == backend.get() else _preferring(name)


_NOTHING = nullcontext()


@contextmanager
def _preferring(name: str) -> Iterator[None]:
    token = backend.set(name)
    try:
        yield
    finally:
        backend.reset(token)


def autocasts(input: Tensor) -> bool:
    """Whether autocast is on for the input's device: torch then computes losses in float32."""
    return _is_any_autocast_enabled() and torch.is_autocast_enabled(input.device.type)


def is_transformed() -> bool:
    """Whether torch.func or forward-mode AD is at work."""
    if _are_functorch_transforms_active():
        return True
    return forward_ad._current_level >= 0 and not is_compiling()


def is_traced() -> bool:
    """Whether torch.jit.trace or a TorchFunctionMode is to see torch's own functions."""
    if _get_tracing_state() is not None:
        return True
    return _is_torch_function_mode_enabled() and not all(
        type(mode).__module__ in _BYSTANDERS for mode in _get_current_function_mode_stack()
    )


def is_batched(upstream: Tensor) -> bool:
    """Whether a batch of upstream gradients comes at once, from torch.func.vmap or is_grads_batched=True."""
    if torch._C._are_functorch_transforms_active():
        return True
    return not is_compiling() and torch._C._functorch.is_legacy_batchedtensor(upstream)


def is_followed() -> bool:
    """Whether a mode sees every operator, as that of make_fx: it may refuse to show values."""
    return _len_torch_dispatch_stack() > 0


def saved_tensors_are_hooked() -> bool:
    """Whether someone wants to see, move or drop what autograd keeps: a buffer would escape them."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None

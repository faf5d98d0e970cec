"""The operators `torch.ops.fused_losses.*`: their schemas.

Each loss has four, named after it:

    NAME            loss, statistics of rows, their largest classes, and gradients, as asked for
    NAME_           the same; the input's gradient overwrites it
    NAME_backward   the gradients, computed from the inputs
    NAME_backward_  the same, into tensors that are there; left alone if they are ready and upstream is 1

They take the operands `(input, target, weight?, extra?)`: `extra` is the loss's third operand (pos_weight,
var, the negative of a triplet), and in the backward of the softmax family, what the forward has kept of
each row. `gradients` is a sum of the bits in `registry`. Kernels are registered by the libraries in
`csrc/`, one per dispatch key; fake tensors are answered by `fused_losses.fakes`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch._ops import OpOverload

from fused_losses.fakes import fake_scale, fakes_of
from fused_losses.registry import LOSSES, Family, Loss

__all__ = ["OPERATORS", "Operators", "scale_"]

_library = torch.library.Library("fused_losses", "DEF")

_OPERANDS = "Tensor target, Tensor? weight, Tensor? extra"

_OPTIONS: dict[Family, str] = {
    "pointwise": "float[] parameters, float? ignore_index, Tensor? normalizer",
    "vectors": "float[] parameters",
    "softmax": "int ignore_index, float label_smoothing, float[] terms, Tensor? normalizer, "
    "Tensor? lse_gradient",
    "class_margin": "float[] parameters",
}


@dataclass(frozen=True)
class Operators:
    """The four operators of a loss."""

    forward: OpOverload[Any, Any]
    forward_inplace: OpOverload[Any, Any]
    backward: OpOverload[Any, Any]
    backward_into: OpOverload[Any, Any]


def _define(loss: Loss) -> Operators:
    name = loss.name
    call = f"{_OPERANDS}, {_OPTIONS[loss.family]}, int reduction"
    schemas = (
        f"{name}(Tensor input, {call}, ScalarType? dtype, int gradients) -> Tensor[]",
        f"{name}_(Tensor(a!) input, {call}, ScalarType? dtype, int gradients) -> Tensor[]",
        f"{name}_backward(Tensor upstream, Tensor input, {call}, int gradients) -> Tensor[]",
        f"{name}_backward_(Tensor(a!)[] into, bool ready, Tensor upstream, Tensor input, {call}, "
        "int gradients) -> ()",
    )
    for schema in schemas:
        # torch.compile takes no operator that both changes an argument and returns tensors; it never meets
        # NAME_, since compiled graphs recompute.
        changes_and_returns = "(a!) input" in schema
        _library.define(schema, tags=() if changes_and_returns else (torch.Tag.pt2_compliant_tag,))
    names = [schema.split("(")[0] for schema in schemas]
    for operator, fake in zip(names, fakes_of(loss), strict=True):
        torch.library.register_fake(f"fused_losses::{operator}", fake, lib=_library)
    return Operators(*(getattr(torch.ops.fused_losses, operator).default for operator in names))


OPERATORS: dict[str, Operators] = {name: _define(loss) for name, loss in LOSSES.items()}

_library.define("scale_(Tensor(a!) gradient, Tensor factor) -> ()")
torch.library.register_fake("fused_losses::scale_", fake_scale, lib=_library)
scale_: OpOverload[Any, Any] = torch.ops.fused_losses.scale_.default

_library.define("cached_bytes() -> int")
_library.define("empty_cache() -> ()")
_library.define("set_cache_limit(int bytes) -> ()")

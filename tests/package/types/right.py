"""What a user may write: type checkers take every line, and know every result's type."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import assert_type

import fused_losses
from fused_losses import distributed, functional
from fused_losses.functional import CrossEntropyOutput

logits = torch.randn(8, 10, requires_grad=True)
target = torch.randint(10, (8,))
head = torch.randn(10, 16)
features = torch.randn(8, 16)


def functions(flag: bool) -> None:
    assert_type(functional.cross_entropy(logits, target), Tensor)
    functional.cross_entropy(logits, target, None, None, -100, None, "sum", 0.1).backward()
    assert_type(functional.cross_entropy(logits, target, z_loss=1e-4, return_lse=False), Tensor)
    assert_type(functional.cross_entropy(logits, target, return_lse=True), CrossEntropyOutput)
    assert_type(functional.cross_entropy(logits, target, z_loss=1e-4, return_z_loss=True), CrossEntropyOutput)
    assert_type(
        functional.cross_entropy(logits, target, return_accuracy=True, return_lse=flag), CrossEntropyOutput
    )
    assert_type(functional.cross_entropy(logits, target, return_argmax=True).argmax, Tensor | None)
    assert_type(functional.cross_entropy(logits, target, return_lse=flag), Tensor | CrossEntropyOutput)
    loss, lse, *_ = functional.cross_entropy(logits, target, return_lse=True)
    assert_type(loss, Tensor)
    assert_type(lse, Tensor | None)
    assert_type(functional.mse_loss(features, features, reduction="sum", backward="recompute"), Tensor)
    assert_type(functional.kl_div(features, features, reduction="batchmean"), Tensor)


def heads(flag: bool) -> None:
    assert_type(functional.linear_cross_entropy(features, head, target, workspace=1 << 20), Tensor)
    assert_type(
        functional.linear_cross_entropy(features, head, target, return_accuracy=True), CrossEntropyOutput
    )
    assert_type(
        functional.linear_cross_entropy(features, head, target, return_lse=flag), Tensor | CrossEntropyOutput
    )
    assert_type(functional.linear_loss(features, head, target, "nll_loss", reduction="sum"), Tensor)
    assert_type(distributed.cross_entropy(logits, target, backward="inplace"), Tensor)
    assert_type(distributed.cross_entropy(logits, target, return_lse=True), CrossEntropyOutput)
    assert_type(distributed.linear_cross_entropy(features, head, target), Tensor)
    assert_type(
        distributed.linear_cross_entropy(features, head, target, return_argmax=True), CrossEntropyOutput
    )


def modules(flag: bool) -> None:
    assert_type(fused_losses.CrossEntropyLoss(label_smoothing=0.1)(logits, target), Tensor)
    assert_type(fused_losses.CrossEntropyLoss(return_lse=True)(logits, target), CrossEntropyOutput)
    either = fused_losses.CrossEntropyLoss(return_lse=flag)
    assert_type(either(logits, target, normalizer=8), Tensor | CrossEntropyOutput)
    annotated: fused_losses.CrossEntropyLoss = fused_losses.CrossEntropyLoss()
    assert_type(annotated(logits, target), Tensor)
    torchs: torch.nn.CrossEntropyLoss = fused_losses.CrossEntropyLoss(reduction="none")
    torchs.zero_grad()
    assert_type(fused_losses.BCEWithLogitsLoss(pos_weight=head)(features, features), Tensor)
    assert_type(fused_losses.TripletMarginLoss(swap=True)(features, features, features), Tensor)
    assert_type(fused_losses.KLDivLoss(reduction="batchmean")(features, features), Tensor)


def controls(model: torch.nn.Linear) -> None:
    assert_type(fused_losses.replace(model, backward="inplace"), torch.nn.Linear)
    with fused_losses.patch(["mse_loss", "linear_cross_entropy"]) as patched, fused_losses.backend("triton"):
        assert_type(patched.replaced, tuple[str, ...])
    fused_losses.patch("cross_entropy").undo()
    assert_type(fused_losses.explain(functional.mse_loss, features, features), str)


class Scaled(fused_losses.CrossEntropyLoss):
    """A user's subclass."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return 2 * super().forward(input, target)

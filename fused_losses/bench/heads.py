"""The family "linear": losses behind a linear layer, from hidden states to the gradients of the layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from fused_losses import samples

Sizes = dict[str, Sequence[samples.Shape]]

# Logits in float64 at a time when the reference is computed: 256 MiB.
REFERENCE_LOGITS = 2**25


@dataclass(frozen=True)
class Head:
    """A loss of the logits x W^T of N hidden states x (N, D) and a layer's weight W (V, D)."""

    loss: str
    """The loss alone, as in torch.nn.functional."""
    target: Callable[[samples.Shape, Generator], Tensor]
    """Of logits (N, V)."""
    sizes: Sizes
    """N x D x V."""
    call: dict[str, Any] = field(default_factory=dict)
    """What ours is called with besides its operands."""
    trained: tuple[int, ...] = (0, 1)

    def inputs(self, shape: samples.Shape, generator: Generator) -> samples.Inputs:
        """Hidden states and weight whose logits are as wide as those of `samples`, and a target."""
        rows, features, classes = shape
        hidden = torch.randn((rows, features), generator=generator)
        weight = torch.randn((classes, features), generator=generator)
        target = self.target((rows, classes), generator)
        return hidden, weight.mul_(samples.LOGIT_SCALE * features**-0.5), target

    def unfused(self, hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        """Torch's layer, then torch's loss."""
        loss: Tensor = getattr(F, self.loss)(F.linear(hidden, weight), target)
        return loss

    def exact(self, inputs: samples.Inputs) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Loss and both gradients in float64, some rows at a time: all logits would take 4 GiB and more."""
        hidden, weight, target = inputs
        wide = weight.detach().double()
        per_chunk = max(1, REFERENCE_LOGITS // wide.shape[0])
        total = wide.new_zeros(())
        of_hidden, of_weight = [], torch.zeros_like(wide)
        for rows, goal in zip(hidden.detach().split(per_chunk), target.split(per_chunk), strict=True):
            x = rows.double()
            logits = F.linear(x, wide).requires_grad_()
            goal = goal.double() if goal.is_floating_point() else goal
            with torch.enable_grad():
                loss = getattr(F, self.loss)(logits, goal, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, logits)
            total += loss.detach()
            of_hidden.append(gradient @ wide)
            of_weight.addmm_(gradient.t(), x)
        divisor = target.numel()
        return total / divisor, (torch.cat(of_hidden) / divisor, of_weight / divisor)


def _classes(shape: samples.Shape, generator: Generator) -> Tensor:
    return torch.randint(shape[1], shape[:1], generator=generator)


def _labels(shape: samples.Shape, generator: Generator) -> Tensor:
    return torch.rand(shape, generator=generator).round_()


HEADS = {
    # The vocabularies of a small tokenizer and of a large one.
    "linear_cross_entropy": Head(
        "cross_entropy",
        _classes,
        {
            "large": [(4096, 512, 32768), (4096, 512, 131072)],
            "medium": [(512, 256, 8192)],
            "small": [(32, 64, 128)],
        },
    ),
    # Many labels; a dense target is as large as the logits.
    "linear_loss": Head(
        "binary_cross_entropy_with_logits",
        _labels,
        {"large": [(4096, 512, 8192)], "medium": [(512, 256, 2048)], "small": [(32, 64, 128)]},
        call={"loss": "binary_cross_entropy_with_logits"},
    ),
}
"""By the name of our function, which takes hidden states, weight and target."""

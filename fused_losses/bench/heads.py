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

# Logits in float64 that the reference has at a time: 256 MiB.
REFERENCE_LOGITS = 2**25


@dataclass(frozen=True)
class Head:
    """A loss of the logits x W^T of N hidden states x (N, D) and a layer's weight W (V, D)."""

    loss: str
    """The loss alone, as in torch.nn.functional."""
    target: Callable[[samples.Shape, Generator], Tensor]
    """Makes the target of logits of a shape (N, V)."""
    sizes: Sizes
    """Shapes (N, D, V) by size."""
    call: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of this package's function over a head."""
    trained: tuple[int, ...] = (0, 1)
    """Which of `inputs` require grad: hidden states and weight."""

    def inputs(self, shape: samples.Shape, generator: Generator) -> samples.Inputs:
        """Hidden states (N, D), a weight (V, D), whose logits spread as those of `samples`, and a target."""
        rows, features, classes = shape
        hidden = torch.randn((rows, features), generator=generator)
        weight = torch.randn((classes, features), generator=generator)
        target = self.target((rows, classes), generator)
        return hidden, weight.mul_(samples.LOGIT_SCALE * features**-0.5), target

    def unfused(self, hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        """Torch's layer, then torch's loss: (), in the dtype of hidden states (N, D) and weight (V, D)."""
        loss: Tensor = getattr(F, self.loss)(F.linear(hidden, weight), target)
        return loss

    def exact(self, inputs: samples.Inputs) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Loss and both gradients in float64, some rows at a time: all logits would take 4 GiB and more."""
        hidden, weight, target = inputs
        weight64 = weight.detach().double()
        per_chunk = max(1, REFERENCE_LOGITS // weight64.shape[0])
        total = weight64.new_zeros(())
        hidden_gradients, weight_gradient = [], torch.zeros_like(weight64)
        for rows, goal in zip(hidden.detach().split(per_chunk), target.split(per_chunk), strict=True):
            x = rows.double()
            logits = F.linear(x, weight64).requires_grad_()
            goal = goal.double() if goal.is_floating_point() else goal
            with torch.enable_grad():
                loss = getattr(F, self.loss)(logits, goal, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, logits)
            total += loss.detach()
            hidden_gradients.append(gradient @ weight64)
            weight_gradient.addmm_(gradient.t(), x)
        divisor = target.numel()
        return total / divisor, (torch.cat(hidden_gradients) / divisor, weight_gradient / divisor)


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
    # A choice among many labels, each by itself: the target is dense, and as large as the logits.
    "linear_loss": Head(
        "binary_cross_entropy_with_logits",
        _labels,
        {"large": [(4096, 512, 8192)], "medium": [(512, 256, 2048)], "small": [(32, 64, 128)]},
        call={"loss": "binary_cross_entropy_with_logits"},
    ),
}
"""The heads that are measured, by this package's functions, which take hidden states, weight and target."""

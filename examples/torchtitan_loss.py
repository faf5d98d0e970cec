"""Losses in torchtitan's form: a callable of predictions and labels that returns the sum over tokens.

    python examples/torchtitan_loss.py

The trainer divides by the number of tokens of the whole batch, over all micro-batches and ranks. The second
form takes hidden states and the output layer instead of predictions: logits are never there as a whole.
"""

from typing import Annotated

import torch
import typer
from torch import Tensor, nn

import fused_losses.functional as F

IGNORE_INDEX = -100


def cross_entropy_loss(pred: Tensor, labels: Tensor) -> Tensor:
    """Sum over tokens, in float32; predictions (batch, length, vocabulary) are read as they are."""
    with torch.autocast(pred.device.type, dtype=torch.bfloat16, enabled=pred.dtype is torch.bfloat16):
        # "recompute", since the forward cannot know what the sum will be divided by.
        return F.cross_entropy(
            pred.flatten(0, 1),
            labels.flatten(0, 1),
            reduction="sum",
            ignore_index=IGNORE_INDEX,
            backward="recompute",
        )


def linear_cross_entropy_loss(hidden: Tensor, labels: Tensor, output: nn.Linear) -> Tensor:
    """Sum over tokens of hidden states (batch, length, features) and their output layer, chunk by chunk."""
    with torch.autocast(hidden.device.type, dtype=torch.bfloat16, enabled=hidden.dtype is torch.bfloat16):
        return F.linear_cross_entropy(
            hidden.flatten(0, 1),
            output.weight,
            labels.flatten(0, 1),
            linear_bias=output.bias,
            reduction="sum",
            ignore_index=IGNORE_INDEX,
        )


def main(
    vocabulary: Annotated[int, typer.Option(min=2)] = 8192,
    length: Annotated[int, typer.Option(min=2)] = 256,
    micro_batches: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    """Accumulate one step over micro-batches with either form, and compare losses and gradients."""
    torch.manual_seed(0)
    output = nn.Linear(64, vocabulary, bias=False)
    batches = [
        (torch.randn(2, length, 64), torch.randint(vocabulary, (2, length))) for _ in range(micro_batches)
    ]
    batches[0][1][:, : length // 2] = IGNORE_INDEX
    tokens = sum((labels != IGNORE_INDEX).sum() for _, labels in batches)
    results = []
    for form in ("logits", "linear head"):
        output.zero_grad()
        total = torch.zeros(())
        for hidden, labels in batches:
            if form == "logits":
                loss = cross_entropy_loss(output(hidden), labels) / tokens
            else:
                loss = linear_cross_entropy_loss(hidden, labels, output) / tokens
            loss.backward()
            total += loss.detach()
        assert output.weight.grad is not None
        results.append((total, output.weight.grad.clone()))
        print(f"{form:>11}: loss {total:.6f}, norm of the gradient {output.weight.grad.norm():.6f}")
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


if __name__ == "__main__":
    typer.run(main)

"""Training with either loss: the same code, given one module of losses or the other."""

from collections.abc import Callable
from time import perf_counter
from typing import Protocol, cast

import torch
import torch.nn.functional
from corpus import Corpus
from language_model import LanguageModel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

import fused_losses.functional


class Losses(Protocol):
    """The part of `torch.nn.functional` that training needs."""

    cross_entropy: Callable[[Tensor, Tensor], Tensor]


# The only difference between the two runs.
LOSSES = {
    "torch": cast(Losses, torch.nn.functional),
    "fused_losses": cast(Losses, fused_losses.functional),
}

# Four times this rate without a warm-up trains at the edge of stability, where a difference of one
# rounding grows ten-thousandfold; the two runs could then not be compared step by step.
LEARNING_RATE = 5e-4
WARM_UP_STEPS = 50


class Trainer:
    """A model, its optimizer and the loss it is trained with, one part of a step at a time."""

    def __init__(self, losses: Losses, vocabulary: int, context: int, seed: int) -> None:
        torch.manual_seed(seed)  # the same initial weights for every trainer
        self.losses = losses
        self.model = LanguageModel(vocabulary, context)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE)
        self.schedule = torch.optim.lr_scheduler.LinearLR(
            self.optimizer, start_factor=1 / WARM_UP_STEPS, total_iters=WARM_UP_STEPS
        )
        self.loss_values: list[float] = []
        self.loss_layer_times: list[float] = []
        self.step_times: list[float] = []

    def loss_layer(self, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss and its gradient to the logits, and go no further back than those.

        `loss.backward()` would do the same work in one go. It is split here because the loss
        layer's forward and backward are what differs, and are to be timed without the model's.
        """
        loss = self.losses.cross_entropy(logits, targets)
        (gradient,) = torch.autograd.grad(loss, logits)
        return loss, gradient

    def update(self, logits: Tensor, gradient: Tensor) -> None:
        """Take the gradient from the logits back through the model, and step the optimizer."""
        torch.autograd.backward(logits, gradient)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()

    def step(self, tokens: Tensor, targets: Tensor) -> None:
        """Train on one batch and note the loss and the times."""
        started = perf_counter()
        logits = self.model(tokens)
        loss_started = perf_counter()
        loss, gradient = self.loss_layer(logits, targets)
        self.loss_layer_times.append(perf_counter() - loss_started)
        self.update(logits, gradient)
        self.step_times.append(perf_counter() - started)
        self.loss_values.append(loss.item())


def train(trainers: list[Trainer], corpus: Corpus, steps: int, batch: int, context: int, seed: int) -> None:
    """Train all on the same batches; every batch goes through each before the next one comes.

    Taking turns step by step lets whatever else the machine does slow all of them alike, and
    swapping who goes first keeps either from always finding what the other left in the caches.
    """
    columns = (
        TextColumn("training both"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[losses]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        task = progress.add_task("", total=steps, losses="")
        for number, (tokens, targets) in enumerate(corpus.batches(steps, batch, context, seed)):
            for trainer in trainers if number % 2 == 0 else reversed(trainers):
                trainer.step(tokens, targets)
            latest = " | ".join(f"{trainer.loss_values[-1]:.4f}" for trainer in trainers)
            progress.update(task, advance=1, losses=latest)

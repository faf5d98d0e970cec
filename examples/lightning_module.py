"""A Lightning module with a loss of fused_losses; without lightning, a plain loop trains the same module.

    python examples/lightning_module.py [--plain]

The loss is an attribute like any other, so checkpoints and `isinstance` work as with torch's.
"""

from typing import Annotated

import torch
import typer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fused_losses

try:
    from lightning import LightningModule, Trainer
except ImportError:
    LightningModule, Trainer = nn.Module, None

FEATURES, CLASSES = 16, 10


class Classifier(LightningModule):
    """A linear classifier; the loss is a module like any other."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(FEATURES, CLASSES)
        self.loss = fused_losses.CrossEntropyLoss(label_smoothing=0.1)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """The loss of a batch, to be backwarded by the trainer."""
        features, classes = batch
        loss: Tensor = self.loss(self.classifier(features), classes)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.5)


def fit(model: Classifier, data: DataLoader[tuple[Tensor, ...]], epochs: int) -> None:
    """What Lightning's trainer does, at its simplest."""
    optimizer = model.configure_optimizers()
    for _ in range(epochs):
        for index, (features, classes) in enumerate(data):
            optimizer.zero_grad()
            model.training_step((features, classes), index).backward()
            optimizer.step()


def main(epochs: Annotated[int, typer.Option(min=1)] = 5, plain: bool = False) -> None:
    """Train, and print the loss before and after."""
    torch.manual_seed(0)
    features = torch.randn(512, FEATURES)
    classes = (features @ torch.randn(FEATURES, CLASSES)).argmax(1)
    data = DataLoader(TensorDataset(features, classes), batch_size=32)
    model = Classifier()
    before = model.training_step((features, classes), 0).item()
    if plain or Trainer is None:
        fit(model, data, epochs)
    else:
        Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(model, data)
    after = model.training_step((features, classes), 0).item()
    print(f"loss before {before:.6f}, after {after:.6f}")


if __name__ == "__main__":
    typer.run(main)

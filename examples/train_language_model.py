"""Train one small language model twice: with torch's loss, and with the one of fused_losses.

    python examples/train_language_model.py

Both runs start from the same weights and see the same batches in the same order. In code of your
own, the whole change is one import line:

    import torch.nn.functional as losses  # before
    import fused_losses.functional as losses  # after
"""

import math
from pathlib import Path
from statistics import median
from typing import Annotated

import torch
import typer
from corpus import load_corpus
from peak_memory import extra_memory
from report import Result, save_picture, table
from rich.console import Console
from training import LOSSES, Trainer, train


def allowed_difference(steps: int, vocabulary: int) -> float:
    """Return how far apart rounding alone may take the two final losses.

    The two losses add up the same float32 numbers in different orders. That leaves about one
    rounding, `eps`, between their results, relative to the loss, which starts out at the logarithm
    of the vocabulary. The gradients differ as little, so each step moves the two models apart by
    about one rounding more, and while training neither damps nor amplifies that, as with this
    learning rate, the differences add up at most in proportion to the steps.
    """
    return steps * torch.finfo(torch.float32).eps * math.log(vocabulary)


def main(
    steps: Annotated[int, typer.Option(min=1, help="Training steps of each run.")] = 300,
    batch: Annotated[int, typer.Option(min=1, help="Sequences in a batch.")] = 8,
    context: Annotated[int, typer.Option(min=2, help="Tokens in a sequence.")] = 64,
    vocab: Annotated[int, typer.Option(min=2, help="Most words in the vocabulary.")] = 16384,
    seed: Annotated[int, typer.Option(help="Seed of weights and batches.")] = 0,
    out: Annotated[Path, typer.Option(help="Where the picture goes.")] = Path("build/demo/demo.png"),
    tiny: Annotated[bool, typer.Option("--tiny", help="A few small steps, for tests.")] = False,
) -> None:
    """Train a small language model with torch's loss and with fused_losses', and compare."""
    # 12 million characters take in nearly all of the library and a few seconds to tokenise.
    characters = 12_000_000
    if tiny:
        steps, batch, context, vocab, characters = 10, 2, 16, 1000, 300_000

    console = Console()
    with console.status("reading Python's standard library"):
        corpus = load_corpus(vocab, characters)
    vocab = len(corpus.words)  # a short text has fewer words than asked for
    console.print(
        f"{len(corpus.tokens):,} tokens of Python's standard library; "
        f"a vocabulary of {vocab:,} words covers {corpus.known_share:.1%} of them"
    )
    with console.status("measuring memory"):
        memory = extra_memory(vocab, batch, context, seed)
    trainers = {name: Trainer(losses, vocab, context, seed) for name, losses in LOSSES.items()}
    train(list(trainers.values()), corpus, steps, batch, context, seed)
    baseline, candidate = (
        Result(
            name,
            trainer.loss_values,
            1e3 * median(trainer.loss_layer_times),
            1e3 * median(trainer.step_times),
            *memory[name],
        )
        for name, trainer in trainers.items()
    )

    title = (
        f"Language model, {steps} steps, logits of {batch * context:,} x {vocab:,}, "
        f"{torch.get_num_threads()} threads"
    )
    console.print(table(baseline, candidate, title))
    save_picture(baseline, candidate, title, out)
    console.print(f"picture: {out}")
    final_difference = abs(baseline.losses[-1] - candidate.losses[-1])
    allowed = allowed_difference(steps, vocab)
    if not final_difference <= allowed:  # so written, NaN fails as well
        console.print(f"[red]final losses differ by {final_difference:.1e}, over {allowed:.1e}")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)

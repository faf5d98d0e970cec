"""Train a causal language model of transformers: as it is, with a loss of fused_losses, and without logits.

    python examples/transformers_causal_lm.py

Prints the losses, and how far a step raises the memory of a process of its own (Linux only).
"""

import json
import subprocess
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any

import torch
import typer
from peak_memory import MIB, available, peak_bytes, reset_peak, resident_bytes
from transformers import LlamaConfig, LlamaForCausalLM

from fused_losses.integrations.linear_head import use_linear_head
from fused_losses.integrations.transformers import patch_transformers


def loss_of(name: str, model: LlamaForCausalLM) -> AbstractContextManager[Any]:
    """The context in which a run trains, which is all that differs between runs."""
    if name == "fused_losses":
        return patch_transformers()
    return use_linear_head(model) if name == "without logits" else nullcontext()


def measure(name: str, vocabulary: int, length: int, steps: int) -> dict[str, Any]:
    """Train in this process: the losses, and the peak of the first step in bytes."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=vocabulary, **sizes)
    model = LlamaForCausalLM(config).bfloat16().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    tokens = torch.randint(vocabulary, (1, length))
    losses, peak = [], None
    with loss_of(name, model):
        model(tokens[:, :2], labels=tokens[:, :2]).loss.backward()  # loads code and starts threads
        for step in range(steps):
            optimizer.zero_grad(set_to_none=False)
            if is_first := step == 0 and available():
                before = resident_bytes()
                reset_peak()
            loss = model(tokens, labels=tokens).loss
            loss.backward()
            if is_first:  # later ones find memory that was freed
                peak = peak_bytes() - before
            optimizer.step()
            losses.append(loss.item())
    return {"losses": losses, "peak": peak}


def main(
    vocabulary: Annotated[int, typer.Option(min=2)] = 16384,
    length: Annotated[int, typer.Option(min=2, help="Tokens of the one sequence.")] = 512,
    steps: Annotated[int, typer.Option(min=1)] = 3,
    name: Annotated[str, typer.Option(help="One run alone, for programs.", hidden=True)] = "",
) -> None:
    """Train with each loss in a process of its own, and compare."""
    if name:
        print(json.dumps(measure(name, vocabulary, length, steps)))
        return
    for each in ("transformers", "fused_losses", "without logits"):
        command = [sys.executable, __file__, f"--name={each}", f"--vocabulary={vocabulary}"]
        command += [f"--length={length}", f"--steps={steps}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        result = json.loads(done.stdout)
        memory = "?" if result["peak"] is None else f"{result['peak'] / MIB:.1f}"
        print(f"{each:>14}: losses {' '.join(f'{x:.4f}' for x in result['losses'])}; step {memory} MiB")


if __name__ == "__main__":
    typer.run(main)

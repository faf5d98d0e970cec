"""Models of transformers of small configurations, batches for them, and a few steps of training."""

from __future__ import annotations

import torch
import transformers
from torch import nn

VOCABULARY = 101
FLOAT32 = {"rtol": 1e-5, "atol": 1e-6}
# Of gradients, eight bits of significand, through the few layers of these models.
BFLOAT16 = {"rtol": 2**-4, "atol": 2**-8}

LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
BERT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
MODELS = {
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)),
    "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2, **NO_DROPOUT)),
}


def make(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]().to(dtype).train()


def batch(seed: int = 0, ignored: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(VOCABULARY, (2, 12), generator=generator)
    labels = tokens.clone()
    labels[0, :ignored] = -100
    return {"input_ids": tokens, "labels": labels}


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def train(model: nn.Module, steps: int = 3, micro_batches: int = 2) -> tuple[torch.Tensor, dict]:
    """The losses of a few steps of gradient accumulation, and the gradients of the last."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        batches = [batch(step * micro_batches + i, ignored=4 * i) for i in range(micro_batches)]
        items = sum((b["labels"][:, 1:] != -100).sum() for b in batches)
        for inputs in batches:
            loss = model(**inputs, num_items_in_batch=items).loss
            loss.backward()
            losses.append(loss.detach())
        optimizer.step()
    return torch.stack(losses), gradients(model)

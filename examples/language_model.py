"""A small causal transformer in plain `torch.nn`; it knows nothing about the loss."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Block(nn.Module):
    """Causal self-attention and a two-layer perceptron, each normalised first and added back."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_output = nn.Linear(width, width)
        self.perceptron = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Map (batch, context, width) to the same shape."""
        projected = self.query_key_value(self.attention_norm(hidden))
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in projected.chunk(3, dim=-1)
        )
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.attention_output(attended.transpose(1, 2).flatten(2))
        output: Tensor = hidden + self.perceptron(hidden)
        return output


class LanguageModel(nn.Module):
    """Token and position embeddings, a few blocks, and an output layer tied to the embedding."""

    def __init__(
        self, vocabulary: int, context: int, width: int = 128, heads: int = 4, layers: int = 2
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = nn.Parameter(torch.zeros(context, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        # GPT-2's scale: with tied weights, torch's default (1.0) would start at enormous logits.
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (batch, context) token numbers to (batch * context, vocabulary) logits."""
        hidden = self.embedding(tokens) + self.positions[: tokens.size(1)]
        hidden = self.norm(self.blocks(hidden))
        logits: Tensor = functional.linear(hidden.flatten(0, 1), self.embedding.weight)
        return logits

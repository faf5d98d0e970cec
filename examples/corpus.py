"""The text of Python's own standard library, as word-level tokens."""

import re
import sysconfig
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

UNKNOWN = "<unk>"
# A token is a line end, a run of letters and underscores, one digit, or one other visible sign.
# Single digits keep numbers from filling the vocabulary; spaces within a line are dropped.
TOKEN = re.compile(r"\n|[^\W\d]+|\d|[^\w\s]")
# Tests repeat themselves, `encodings` is mostly tables, and `site-packages` is not the library.
SKIPPED_FOLDERS = frozenset({"encodings", "idle_test", "site-packages", "test", "tests"})


@dataclass(frozen=True)
class Corpus:
    """One long sequence of token numbers and the words they stand for."""

    tokens: Tensor
    words: list[str]

    @property
    def known_share(self) -> float:
        """Share of the text that the vocabulary covers."""
        return 1.0 - (self.tokens == 0).float().mean().item()

    def batches(self, count: int, batch: int, context: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield `count` pairs of inputs and next-token targets, cut from random places."""
        generator = torch.Generator().manual_seed(seed)
        offsets = torch.arange(context + 1)
        for _ in range(count):
            starts = torch.randint(len(self.tokens) - context, (batch, 1), generator=generator)
            windows = self.tokens[starts + offsets]
            yield windows[:, :-1], windows[:, 1:].flatten()


def standard_library_text(max_characters: int) -> str:
    """Join the standard library's sources, `pydoc`'s help topics first, up to a length."""
    library = Path(sysconfig.get_path("stdlib"))
    sources = sorted(
        path for path in library.rglob("*.py") if SKIPPED_FOLDERS.isdisjoint(path.relative_to(library).parts)
    )
    sources.sort(key=lambda path: path.parent.name != "pydoc_data")  # stable: the rest stays put
    texts: list[str] = []
    length = 0
    for path in sources:
        texts.append(path.read_text(encoding="utf-8", errors="replace"))
        length += len(texts[-1])
        if length >= max_characters:
            break
    return "".join(texts)[:max_characters]


def load_corpus(vocabulary: int, max_characters: int) -> Corpus:
    """Tokenise the standard library with its most frequent words; the rest become `<unk>`."""
    tokens = TOKEN.findall(standard_library_text(max_characters))
    words = [UNKNOWN, *(word for word, _ in Counter(tokens).most_common(vocabulary - 1))]
    numbers = {word: number for number, word in enumerate(words)}
    return Corpus(torch.tensor([numbers.get(token, 0) for token in tokens]), words)

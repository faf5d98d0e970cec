"""Inputs that look like those of training, for benchmarks and tests: float32, from a generator."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

Inputs = tuple[Tensor, ...]
Shape = tuple[int, ...]

# The closest to 0 and 1 that a probability comes: bfloat16, with 8 significant bits, still tells
# both ends apart. A probability that rounds to 1 has a gradient of 1e12 / N, beside which every
# other error vanishes.
PROBABILITY_MARGIN = 2.0**-7

# Standard deviation of the random logits: large enough that a row has likely and unlikely classes.
LOGIT_SCALE = 3.0

# How far a neighbour is from its anchor. Between random vectors, all distances are alike; with neighbours at
# this one, the usual margin of 1 leaves most triplets with a loss.
NEIGHBOUR_DISTANCE = 1.0

# About as many labels as a picture or a text is tagged with.
LABELS_PER_ROW = 4


def _normal(shape: Shape, generator: Generator) -> Tensor:
    return torch.randn(shape, generator=generator)


def _logits(shape: Shape, generator: Generator) -> Tensor:
    return _normal(shape, generator).mul_(LOGIT_SCALE)


def _signs(shape: Shape, generator: Generator) -> Tensor:
    return torch.rand(shape, generator=generator).round_().mul_(2).sub_(1)


def _classes(shape: Shape, generator: Generator) -> Tensor:
    """A label for each position of logits (N, C, d1, ...): (N, d1, ...), int64.

    None is ignored, so that every row costs the same.
    """
    rows = (shape[0], *shape[2:])
    return torch.randint(shape[1], rows, generator=generator)


def logits_and_classes(shape: Shape, generator: Generator) -> Inputs:
    """Logits (N, C, d1, ...), and labels (N, d1, ...), int64."""
    return _logits(shape, generator), _classes(shape, generator)


def log_probabilities_and_classes(shape: Shape, generator: Generator) -> Inputs:
    """Log-probabilities (N, C, d1, ...), and labels (N, d1, ...), int64."""
    logits, classes = logits_and_classes(shape, generator)
    return logits.log_softmax(1), classes


def logits_and_labels(shape: Shape, generator: Generator) -> Inputs:
    """Logits, and 0 or 1 for each, both of the given shape."""
    return _logits(shape, generator), torch.rand(shape, generator=generator).round_()


def probabilities_and_labels(shape: Shape, generator: Generator) -> Inputs:
    """Probabilities, and 0 or 1 for each, both of the given shape."""
    logits, labels = logits_and_labels(shape, generator)
    return logits.sigmoid_().clamp_(PROBABILITY_MARGIN, 1 - PROBABILITY_MARGIN), labels


def scores_and_signs(shape: Shape, generator: Generator) -> Inputs:
    """Scores, and -1 or 1 for each, both of the given shape."""
    return _normal(shape, generator), _signs(shape, generator)


def scores_and_label_lists(shape: Shape, generator: Generator) -> Inputs:
    """Scores (N, C), and for each row a list of labels (N, C), int64, that ends at the first -1."""
    labels = torch.full(shape, -1)
    count = min(LABELS_PER_ROW, shape[-1])
    labels[:, :count] = torch.rand(shape, generator=generator).argsort(1)[:, :count]
    return _normal(shape, generator), labels


def two_scores_and_signs(shape: Shape, generator: Generator) -> Inputs:
    """First and second scores, and 1 where the first is to be higher, -1 where the second is."""
    return _normal(shape, generator), _normal(shape, generator), _signs(shape, generator)


def two_normal(shape: Shape, generator: Generator) -> Inputs:
    """Predictions and targets, both of the given shape."""
    return _normal(shape, generator), _normal(shape, generator)


def log_rates_and_counts(shape: Shape, generator: Generator) -> Inputs:
    """Logarithms of rates, and counts of events, both of the given shape."""
    rates = _normal(shape, generator)
    return rates, torch.poisson(rates.exp(), generator=generator)


def means_targets_and_variances(shape: Shape, generator: Generator) -> Inputs:
    """Means, observations, and variances that are not near 0, all of the given shape."""
    variances = torch.rand(shape, generator=generator).add_(0.5)
    return _normal(shape, generator), _normal(shape, generator), variances


def two_distributions(shape: Shape, generator: Generator) -> Inputs:
    """Log-probabilities and probabilities over the last dimension, both of the given shape."""
    logits = [_normal(shape, generator) for _ in range(2)]
    return logits[0].log_softmax(-1), logits[1].softmax(-1)


def triplets(shape: Shape, generator: Generator) -> Inputs:
    """Anchors (..., D), and for each of them two vectors at about the same distance, of the same shape."""
    anchor = _normal(shape, generator)
    step = NEIGHBOUR_DISTANCE / shape[-1] ** 0.5
    return anchor, *(anchor + step * _normal(shape, generator) for _ in range(2))


def pairs_and_signs(shape: Shape, generator: Generator) -> Inputs:
    """Pairs of vectors (..., D), and for each pair (...) whether they are to be alike (1) or not (-1)."""
    return _normal(shape, generator), _normal(shape, generator), _signs(shape[:-1], generator)

"""The losses of class indices: the softmax family and the margins between classes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kit.cases.case import Case, inputs_of, integers, normal, numbers, option_name, shape_name, uniform

# Rows that fill no register, some, several chunks (1024) with a tail, several stretches (32768) with a tail;
# images; one row; one class; no row.
SHAPES = (
    (7,),
    (3, 1),
    (33, 10),
    (5, 64),
    (9, 131),
    (4, 1025),
    (2, 33000),
    (3, 5, 7),
    (2, 21, 9, 11),
    (1, 3, 64, 5),
    (2, 3, 2, 3, 5),
    (0, 4),
)

# Of no rows at all, torch's mean is memory that nothing was written to.
ROWS = tuple(shape for shape in SHAPES if len(shape) <= 2 and shape[0])


def cases() -> Iterator[Case]:
    yield from shape_cases()
    yield from value_cases()
    yield from term_cases()
    yield from margin_cases()
    yield from label_list_cases()


def _labels(shape: tuple[int, ...], ignore_every: int = 5) -> Tensor:
    positions = shape[:1] + shape[2:] if len(shape) > 1 else ()
    labels = integers(0, shape[1 if len(shape) > 1 else 0], *positions)
    if labels.dim():
        labels.view(-1)[::ignore_every] = -100
        if labels.numel() > 1:
            labels.view(-1)[1] = 0
    return labels


def shape_cases() -> Iterator[Case]:
    """cross_entropy and nll_loss over shapes and options."""
    for shape in SHAPES:
        axis = 1 if len(shape) > 1 else 0
        logits, labels = normal(*shape) * 3, _labels(shape)
        weight = uniform(shape[axis]) + 0.1
        probabilities = normal(*shape, seed=3).softmax(axis)
        both = {"weight": weight, "label_smoothing": 0.1}
        for label, name, target, options in (
            ("index", "cross_entropy", labels, {}),
            ("weight-smoothing", "cross_entropy", labels, both),
            ("smoothing", "cross_entropy", labels, {"label_smoothing": 0.3}),
            ("ignore", "cross_entropy", labels.clamp_min(0), {"ignore_index": 0}),
            ("weight", "cross_entropy", labels, {"weight": weight}),
            ("probabilities", "cross_entropy", probabilities, {}),
            ("probabilities-weight-smoothing", "cross_entropy", probabilities, both),
            ("index", "nll_loss", labels, {}),
            ("weight", "nll_loss", labels, {"weight": weight}),
        ):
            yield Case(f"{shape_name(shape)}-{label}", name, (logits, target), options)


# Of cross_entropy, beyond torch.
TERMS = {"z_loss": 0.03, "entropy": 0.2, "logit_scale": 0.7, "softcap": 6.0}


def term_cases() -> Iterator[Case]:
    """cross_entropy with terms: together over shapes and values, and each by itself."""
    for shape in SHAPES:
        axis = 1 if len(shape) > 1 else 0
        logits, labels = normal(*shape) * 3, _labels(shape)
        both = {"weight": uniform(shape[axis]) + 0.1, "label_smoothing": 0.1}
        probabilities = normal(*shape, seed=3).softmax(axis)
        for label, target, options in (
            ("terms", labels, TERMS),
            ("weight-smoothing-terms", labels, both | TERMS),
            ("probabilities-weight-smoothing-terms", probabilities, both | TERMS),
        ):
            yield Case(f"{shape_name(shape)}-{label}", "cross_entropy", (logits, target), options)
        if shape in ((33, 10), (9, 131), (2, 21, 9, 11)):
            for name, value in TERMS.items():
                label = shape_name(shape) + option_name({name: value})
                yield Case(label, "cross_entropy", (logits, labels), {name: value})
    uncapped = {name: value for name, value in TERMS.items() if name != "softcap"}
    for case in list(value_cases()):
        if not case.options:
            # With a cap, thousands are equal and finite, whose roundings add up (without terms, too).
            if not case.label.startswith("masked-chunks"):
                yield Case(f"{case.label}-terms", case.name, case.operands, TERMS)
            yield Case(f"{case.label}-uncapped-terms", case.name, case.operands, uncapped)


def value_cases() -> Iterator[Case]:
    """cross_entropy on values that break careless arithmetic."""
    labels = torch.tensor([0, 7, 19, 3, 12, 19])
    base = normal(6, 20)
    confident = base.clone()
    confident[torch.arange(6), labels] += 30
    masked = base.clone()
    masked[:, 8:12] = -torch.inf
    all_but_one = torch.full((6, 2100), -torch.inf, dtype=torch.float64)
    all_but_one[:, 2050] = 1.0
    all_but_one[torch.arange(6), labels] = 0.5
    for name, logits in {
        "confident": confident,
        "uniform": torch.zeros(6, 20, dtype=torch.float64),
        "large": base + 1e4,
        "range": base * 1e3,
        "masked": masked,
        "masked-chunks": all_but_one,
        "ties": base.round(),
        "infinite": torch.where(torch.arange(20) == 4, torch.inf, base),
        "nan": torch.where(torch.arange(20) == 4, torch.nan, base),
        "target-masked": torch.where(torch.arange(20) == 19, -torch.inf, base),
        "nothing-but-masked": torch.full((6, 20), -torch.inf, dtype=torch.float64),
    }.items():
        yield Case(name, "cross_entropy", (logits, labels))
        yield Case(f"{name}-smoothing", "cross_entropy", (logits, labels), {"label_smoothing": 0.1})
        columns = logits.t().contiguous().t()
        yield Case(f"{name}-columns", "cross_entropy", (columns, labels))


def margin_cases() -> Iterator[Case]:
    """multi_margin_loss over shapes, powers, margins and weights; gaps of exactly 0; NaN and infinity."""
    name = "multi_margin_loss"
    for shape in ROWS:
        logits, classes = normal(*shape) * 3, integers(0, shape[-1], *shape[:-1])
        weight = uniform(shape[-1]) + 0.1
        for options in ({}, {"p": 2}, {"margin": 0.3, "weight": weight}, {"p": 2, "weight": weight}):
            yield Case(shape_name(shape) + option_name(options), name, (logits, classes), options)
    # So many that each block of a GPU has several of their tiles.
    yield Case("5000x3", name, (normal(5000, 3), integers(0, 3, 5000)))
    yield Case("one-label", name, (normal(9), torch.tensor([4])))
    classes = torch.tensor([0, 7, 19, 3, 12, 19])
    for p in (1, 2):
        yield Case(f"ties-{p}", name, (normal(6, 20).round(), classes), {"p": p})
        for far in (torch.inf, -torch.inf, torch.nan, 1e4):
            logits = torch.where(torch.arange(20) == 7, far, normal(6, 20))
            yield Case(f"{far}-{p}", name, (logits, classes), {"p": p})


def label_list_cases() -> Iterator[Case]:
    """multilabel_margin_loss over shapes and lists: empty, short, with duplicates, full."""
    name = "multilabel_margin_loss"
    for shape in ROWS:
        if len(shape) == 2:
            yield Case(shape_name(shape), name, inputs_of(name, *shape))
    # So many rows that each block of a GPU has several tiles of them; and a list that comes in portions.
    yield Case("1000x7", name, inputs_of(name, 1000, 7))
    yield Case("131-labels", name, (normal(3, 131), integers(0, 131, 3, 131)))
    lists = torch.tensor(
        [
            [-1, 0, 1, 2, 3, 4, 5],
            [3, -1, 0, 0, 0, 0, 0],
            [2, 6, 0, -1, 5, -1, 1],
            [2, 2, 2, 5, 5, -1, -1],
            [0, 1, 2, 3, 4, 5, 6],
            [6, 6, 6, 6, 6, 6, 6],
            [5, 4, 3, 2, 1, 0, -1],
        ]
    )
    scores = normal(7, 7) * 2
    yield Case("lists", name, (scores, lists))
    yield Case("ties", name, (scores.round(), lists))
    for i in (0, 2, 3, 4):
        yield Case(f"row-{i}", name, (scores[i], lists[i]))
    for far in (torch.inf, -torch.inf, torch.nan, 1e4):
        yield Case(f"{far}", name, (torch.where(torch.arange(7) == 2, far, scores), lists))
    yield Case("one-class", name, (numbers(0.5), torch.tensor([0])))

"""The pointwise losses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from kit.cases.case import Case, inputs_of, integers, normal, numbers, option_name, shape_name, uniform

SHAPES = ((), (1,), (0,), (17,), (1023,), (5, 33), (3, 4, 50, 7), (40000,))

# As their inputs in training are; of the others, shapes come with weights.
PLAIN = (
    "smooth_l1_loss",
    "soft_margin_loss",
    "poisson_nll_loss",
    "gaussian_nll_loss",
    "kl_div",
    "margin_ranking_loss",
    "hinge_embedding_loss",
)

OPTIONS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("smooth_l1_loss", {"beta": 0.25}),
    ("smooth_l1_loss", {"beta": 30.0}),
    ("smooth_l1_loss", {"beta": 0.0}),
    ("huber_loss", {"delta": 0.25}),
    ("huber_loss", {"delta": 30.0}),
    ("poisson_nll_loss", {"full": True}),
    ("poisson_nll_loss", {"log_input": False}),
    ("poisson_nll_loss", {"log_input": False, "full": True, "eps": 1e-3}),
    ("gaussian_nll_loss", {"full": True}),
    ("gaussian_nll_loss", {"eps": 0.9}),
    ("kl_div", {"log_target": True}),
    ("margin_ranking_loss", {"margin": 0.3}),
    ("hinge_embedding_loss", {"margin": 0.3}),
    ("sigmoid_focal_loss", {"alpha": -1.0, "gamma": 0.0}),
    ("sigmoid_focal_loss", {"alpha": 0.0, "gamma": 0.3}),
    ("sigmoid_focal_loss", {"alpha": 0.9, "gamma": 1.0}),
    ("sigmoid_focal_loss", {"gamma": 1.7}),
    ("sigmoid_focal_loss", {"gamma": 5}),
    ("sigmoid_focal_loss", {"gamma": 11.3}),
    ("asymmetric_loss", {"clip": None}),
    ("asymmetric_loss", {"gamma_neg": 0, "gamma_pos": 0}),
    ("asymmetric_loss", {"gamma_neg": 0.3, "gamma_pos": 0.7, "clip": 0.3}),
    ("asymmetric_loss", {"gamma_neg": 2.5, "gamma_pos": 0, "clip": 1e-3, "eps": 0.02}),
)


def cases() -> Iterator[Case]:
    yield from shape_cases()
    yield from option_cases()
    yield from broadcast_cases()
    yield from edge_cases()


def shape_cases() -> Iterator[Case]:
    """Every loss over shapes, and those that take weights with them."""
    for shape in SHAPES:
        x, t, p = normal(*shape) * 4, uniform(*shape), uniform(*shape, seed=5)
        weight = {"weight": uniform(*shape, seed=4)}
        last = {"weight": uniform(*shape[-1:], seed=6)}
        weights = {"weight": uniform(*shape, seed=7), "pos_weight": last["weight"] * 3}
        for name, operands, options in (
            ("mse_loss", (x, t), weight),
            ("l1_loss", (x, t), weight),
            ("huber_loss", (x, t), weight),
            ("binary_cross_entropy", (p, t), last),
            ("binary_cross_entropy_with_logits", (x, t), weights),
            ("multilabel_soft_margin_loss", (x, t), last),
            ("sigmoid_focal_loss", (x, t), last),
            ("asymmetric_loss", (x, t), last),
        ):
            if name != "multilabel_soft_margin_loss" or (x.numel() and shape):  # it has no classes otherwise
                yield Case(shape_name(shape), name, operands)
                yield Case(f"{shape_name(shape)}-weight", name, operands, options)
        for name in PLAIN:
            yield Case(shape_name(shape), name, inputs_of(name, *shape))


def option_cases() -> Iterator[Case]:
    """Parameters, and operands for which they make sense."""
    for name, options in OPTIONS:
        for shape in ((17,), (5, 33)):
            first, second, *rest = inputs_of(name, *shape)
            if options.get("log_input") is False:
                first = first.exp()
            if options.get("log_target"):
                second = second.log()
            yield Case(shape_name(shape) + option_name(options), name, (first, second, *rest), options)


def broadcast_cases() -> Iterator[Case]:
    """Operands of fewer elements than the loss, whose gradients are sums; weights of channels; integers."""
    full, row, column, one = (slice(None),) * 2, slice(1), (slice(None), slice(1)), (slice(1), slice(1))
    for name in (*PLAIN, "mse_loss", "l1_loss", "huber_loss"):
        operands = inputs_of(name, 40, 33)
        for label, places in {
            "column-row": (column, row, full),
            "row-column": (row, column, one),
            "one": (full, one, column),
        }.items():
            if name != "gaussian_nll_loss":  # whose variances have rules of their own
                some = tuple(x[place] for x, place in zip(operands, places, strict=False))
                if name != "soft_margin_loss" or some[0].shape == (40, 33):  # torch broadcasts no input here
                    yield Case(label, name, some)
    for name in ("mse_loss", "kl_div", "soft_margin_loss", "hinge_embedding_loss", "poisson_nll_loss"):
        x, t = inputs_of(name, 6, 5)
        yield Case("last", name, (x, t[0]))
        yield Case("scalar", name, (x, t[0, 0]))
    name = "gaussian_nll_loss"
    x, t, var = inputs_of(name, 3, 40, 33)
    for label, some in {
        "var-column": (x, t, var[..., :1]),
        "var-of-rows": (x, t, var[..., 0]),
        "var-channel": (x, t, var[:, :1]),
        "var-number": (x, t, 0.7),
        "target-row": (x, t[:1], var),
        "target-last": (x, t[0, 0], var),
    }.items():
        yield Case(label, name, some)
    name = "multilabel_soft_margin_loss"
    x, t = inputs_of(name, 40, 33)
    yield Case("target-row", name, (x, t[0]))
    yield Case("target-column", name, (x, t[:, :1]), {"weight": uniform(40, 1)})
    # A weight for each channel, as for images.
    channels = uniform(4, 1, 1, seed=8) * 5
    x, t = normal(3, 4, 50, 7) * 4, uniform(3, 4, 50, 7)
    yield Case("channels", "binary_cross_entropy_with_logits", (x, t), {"pos_weight": channels})
    signs = integers(0, 2, 5, 33) * 2 - 1
    x, y = normal(5, 33), normal(5, 33, seed=3)
    yield Case("integers", "soft_margin_loss", (x, signs))
    yield Case("integers", "hinge_embedding_loss", (x, signs))
    yield Case("integers", "margin_ranking_loss", (x, y, signs))
    yield Case("integers", "poisson_nll_loss", (x, integers(0, 9, 5, 33)))
    yield Case("integers", "gaussian_nll_loss", (x, signs, uniform(5, 33) + 0.5))
    yield Case("integers", "mse_loss", (x, signs))


def _products(*values: Tensor) -> tuple[Tensor, ...]:
    """Every combination of them, an operand each."""
    return tuple(column.contiguous() for column in torch.cartesian_prod(*values).unbind(1))


FAR = numbers(0.0, -0.0, 20.0, -20.0, 100.0, -100.0, 1e4, -1e4, torch.inf, -torch.inf, torch.nan)
SIGNS = numbers(1.0, -1.0, 0.0, 0.5)
COUNTS = numbers(0.0, 0.5, 1.0, 2.0, 60.0)


def edge_cases() -> Iterator[Case]:
    """Where formulas change, and what they make of NaN, infinity and zero."""
    far = _products(FAR, numbers(0.0, 1.0, 0.3))
    finite = _products(FAR[FAR.isfinite()], numbers(0.0, 1.0, 0.3))
    rates = numbers(0.0, 1e-30, 0.5, 1.0, 1e4, torch.inf, torch.nan)
    variances = numbers(0.0, 1e-7, 1e-6, 1.0, 1e4, torch.inf, torch.nan)
    ties = numbers(-1.25, -1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 1.25)
    likelihoods = numbers(-torch.inf, -100.0, -1.0, -1e-30, 0.0, torch.nan)
    probabilities = numbers(0.0, 1e-30, 0.3, 1.0)
    for label, name, operands, *options in (
        (
            "edges",
            "binary_cross_entropy",
            _products(numbers(0.0, 1.0, 0.5, 1e-30, 1 - 1e-7), numbers(0.0, 1.0, 0.3)),
        ),
        *(
            ("far", name, far)
            for name in (
                "binary_cross_entropy_with_logits",
                "mse_loss",
                "l1_loss",
                "smooth_l1_loss",
                "huber_loss",
                "multilabel_soft_margin_loss",
            )
        ),
        *(
            (f"far-{gamma}", "sigmoid_focal_loss", far, {"gamma": gamma})
            for gamma in (0.0, 0.1, 0.5, 1.0, 2.0, 7.0)
        ),
        *(
            (f"far{option_name(options)}", "asymmetric_loss", far, options)
            for options in ({}, {"clip": None}, {"gamma_neg": 0.5, "gamma_pos": 0.3}, {"gamma_pos": 0})
        ),
        ("far-weight", "binary_cross_entropy_with_logits", finite, {"pos_weight": numbers(3.0)[0]}),
        *(
            ("ties", name, _products(ties, numbers(0.0, 0.25)), {parameter: 1.0})
            for name, parameter in (("smooth_l1_loss", "beta"), ("huber_loss", "delta"))
        ),
        *(("far", name, _products(FAR, SIGNS)) for name in ("soft_margin_loss", "hinge_embedding_loss")),
        ("steep", "soft_margin_loss", _products(numbers(80.0, 88.5, 89.0, 700.0, 710.0, 3e4), SIGNS[:2])),
        ("ties", "hinge_embedding_loss", _products(ties, SIGNS)),
        ("far", "margin_ranking_loss", _products(FAR, numbers(0.0, 1.0, torch.inf), SIGNS)),
        ("ties", "margin_ranking_loss", _products(ties, ties, SIGNS), {"margin": 0.5}),
        ("far", "poisson_nll_loss", _products(FAR, COUNTS)),
        ("far-full", "poisson_nll_loss", _products(FAR, COUNTS), {"full": True}),
        ("rates", "poisson_nll_loss", _products(rates, COUNTS), {"log_input": False, "full": True}),
        ("far", "gaussian_nll_loss", _products(FAR, numbers(0.0, 1.0), variances), {"full": True}),
        ("far", "kl_div", _products(likelihoods, probabilities)),
        ("far-logs", "kl_div", _products(likelihoods, likelihoods.clamp_min(-60)), {"log_target": True}),
    ):
        yield Case(label, name, operands, *options)

"""Every loss and its derivatives in numpy's long double, by formulas written out here.

What float64 results are judged against, of which torch has nothing better than its own; and what others are
judged against where torch itself overflows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fused_losses.functional as L

PI = 4 * np.arctan(np.longdouble(1))

EPSILON = np.longdouble(np.float32(1e-12))
"""Torch's, a float in every dtype."""


Terms = np.ndarray | tuple[np.ndarray, ...]
"""An array, or several to be added up that may nearly cancel: a result is known to what their size allows."""


@dataclass
class Exact:
    """The values of reduction="none", and what follows from them."""

    values: Terms
    derivatives: list[Terms]
    """Of the values, with respect to the operands in torch's order; class indices and signs have none."""
    axis: int | None = None
    """That of the operands which the values lack."""
    divisor: Any = None
    """Of the mean, where it is not the number of values."""
    kept: Any = True
    """Where derivatives are not 0 whatever they are multiplied by, 0 / 0 for one."""
    short: int | None = None
    """The operand that lacks the last dimension, so that its derivative is summed over that."""
    least_size: float = 0.0
    """Of the terms of every loss."""


def results_in_extended_precision(
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    upstream: Tensor | None,
    judges_float64: bool = False,
) -> tuple[list[Tensor], list[Tensor]]:
    """The loss and, given `upstream`, the gradients of the operands that require it, rounded to float64 once.

    And the sizes of the terms that each number is the sum of. Takes the arguments of torch's function `name`.
    """
    assert np.finfo(np.longdouble).eps < torch.finfo(torch.float64).eps / 256, "no such type on this machine"
    options = {key: _long(value) for key, value in kwargs.items()}
    reduction = options.pop("reduction", "mean")
    if judges_float64 and name == "cross_entropy":
        options["sums_are_rounded"] = True
    with np.errstate(all="ignore"):
        exact = FORMULAS[name](*(_long(x) for x in args), **options)
        values, size = _total(exact.values), _size(exact.values)
        mean = np.size(values) if exact.divisor is None else exact.divisor
        divisor = {"mean": mean, "batchmean": len(args[0]) if args[0].dim() else 1}.get(reduction, 1)
        results = [(values, size) if reduction == "none" else (values.sum() / divisor, size.sum() / divisor)]
        results[0] = (results[0][0], np.maximum(results[0][1], exact.least_size))
        if upstream is not None:
            scale = _long(upstream) / divisor
            if exact.axis is None:
                scale = np.broadcast_to(scale, values.shape)
            elif reduction == "none":
                scale = np.expand_dims(scale, exact.axis)
            for i, (operand, terms) in enumerate(zip(args, exact.derivatives, strict=False)):
                if isinstance(operand, Tensor) and operand.requires_grad:
                    numbers = (
                        np.where(exact.kept, x, 0) for x in (_total(terms) * scale, _size(terms) * abs(scale))
                    )
                    shape = (*operand.shape, 1) if i == exact.short else operand.shape
                    results.append(tuple(_sum_to(x, shape).reshape(operand.shape) for x in numbers))
    return tuple(
        [torch.from_numpy(np.asarray(x).astype(np.float64)) for x in column]
        for column in zip(*results, strict=True)
    )


def _total(terms: Terms) -> np.ndarray:
    return np.asarray(sum(terms) if isinstance(terms, tuple) else terms)


def _size(terms: Terms) -> np.ndarray:
    return _total(tuple(abs(term) for term in terms) if isinstance(terms, tuple) else abs(terms))


def _where(mask: np.ndarray, *terms: np.ndarray) -> tuple[np.ndarray, ...]:
    return tuple(np.where(mask, term, 0) for term in terms)


def _long(value: Any) -> Any:
    if isinstance(value, Tensor):
        numbers = value.detach()
        return (
            numbers.double().numpy().astype(np.longdouble) if value.is_floating_point() else numbers.numpy()
        )
    return np.longdouble(value) if isinstance(value, float) else value


def _sum_to(gradient: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    gradient = gradient.sum(axis=tuple(range(gradient.ndim - len(shape))))
    ones = tuple(i for i, size in enumerate(shape) if size == 1)
    return gradient.sum(axis=ones, keepdims=True)


def _weighted(weight, value, *derivatives, mean_over_weight=False):
    w = np.longdouble(1) if weight is None else weight
    divisor = w.sum() if mean_over_weight and weight is not None else None
    return Exact(w * value, [w * derivative for derivative in derivatives], divisor=divisor)


def _sign(x):
    return (x > 0) * np.longdouble(1) - (x < 0)  # 0 for NaN, as torch's


# ---- regression


def l1_loss(x, t, weight=None):
    d = x - t
    return _weighted(weight, abs(d), _sign(d), -_sign(d), mean_over_weight=True)


def mse_loss(x, t, weight=None):
    d = x - t
    return _weighted(weight, d * d, 2 * d, -2 * d, mean_over_weight=True)


def smooth_l1_loss(x, t, beta=1.0):
    if beta == 0:
        return l1_loss(x, t)
    d = x - t
    far = abs(d) >= beta
    slope = np.where(far, _sign(d), d / beta)
    return Exact(np.where(far, abs(d) - beta / 2, d * d / (2 * beta)), [slope, -slope])


def huber_loss(x, t, delta=1.0, weight=None):
    d = x - t
    far = abs(d) > delta
    slope = np.where(far, delta * _sign(d), d)
    return _weighted(weight, np.where(far, delta * (abs(d) - delta / 2), d * d / 2), slope, -slope)


# ---- binary


def binary_cross_entropy(x, t, weight=None):
    log_x, log_rest = np.log(x), np.log1p(-x)
    value = -t * np.maximum(log_x, -100) - (1 - t) * np.maximum(log_rest, -100)
    of_x = (x - t) / np.maximum(x * (1 - x), EPSILON)
    return _weighted(weight, value, of_x, log_rest - log_x)


def _sigmoid_losses(x, t, weight=None, pos_weight=None):
    factor = np.longdouble(1) if pos_weight is None else pos_weight
    log_sigmoid, log_rest = -np.logaddexp(0, -x), -np.logaddexp(0, x)
    value = -factor * t * log_sigmoid - (1 - t) * log_rest
    of_x = (1 - t) * np.exp(log_sigmoid) - factor * t * np.exp(log_rest)
    # As log(1 - s) - log(s) = -x, of which nothing cancels.
    of_t = np.where(factor == 1, 0, (1 - factor) * log_sigmoid) - x
    return _weighted(weight, value, of_x, of_t)


def binary_cross_entropy_with_logits(x, t, weight=None, pos_weight=None):
    exact = _sigmoid_losses(x, t, weight, pos_weight)
    exact.values = np.where(np.isneginf(x), np.nan, exact.values)  # torch's (1 - t) x - log(sigmoid(x))
    return exact


def multilabel_soft_margin_loss(x, t, weight=None):
    elements, classes = _sigmoid_losses(x, t, weight), x.shape[-1]
    derivatives = [derivative / classes for derivative in elements.derivatives]
    return Exact(elements.values.sum(-1) / classes, derivatives, axis=-1)


def soft_margin_loss(x, t):
    return Exact(np.logaddexp(0, -t * x), [-t * np.exp(-np.logaddexp(0, t * x))])


# ---- likelihoods


def poisson_nll_loss(x, t, log_input=True, full=False, eps=1e-8):
    if log_input:
        value, of_x, of_t = (np.exp(x), -t * x), (np.exp(x), -t), (-x,)
    else:
        log_rate = np.log(x + eps)
        value, of_x, of_t = (x, -t * log_rate), (1, -t / (x + eps)), (-log_rate,)
    if full:
        log_t = np.log(t)
        value += _where(t > 1, t * log_t, -t, np.log(2 * PI * t) / 2)
        of_t += (np.where(t > 1, log_t, 0 * log_t), *_where(t > 1, 1 / (2 * t)))
    return Exact(value, [of_x, of_t])


def gaussian_nll_loss(x, t, var, full=False, eps=1e-6):
    short = 0 < np.ndim(var) < x.ndim
    var = np.expand_dims(var, -1) if short else var
    v, d = np.maximum(var, eps), x - t
    constant = np.log(2 * PI) / 2 if full else 0
    value = (np.log(v) / 2, d * d / v / 2, constant)
    return Exact(value, [d / v, -d / v, (1 / v / 2, -((d / v) ** 2) / 2)], short=2 if short else None)


def kl_div(x, t, log_target=False):
    if log_target:
        p = np.exp(t)
        return Exact(p * (t - x), [-p, (p * (t - x), p)])
    log_t = np.log(t)
    return Exact((np.where(t == 0, 0, t * log_t), -t * x), [-t, (log_t, -x, t / t)])


# ---- margins


def margin_ranking_loss(x1, x2, y, margin=0.0):
    gap = margin - y * (x1 - x2)
    slope = y * (gap > 0)
    return Exact(_positive_part(gap), [-slope, slope, -(x1 - x2) * (gap > 0)])


def hinge_embedding_loss(x, t, margin=1.0):
    gap, close, far = margin - x, t != -1, t != 1
    value = np.where(close, x, 0) + np.where(far, _positive_part(gap), 0)
    return Exact(value, [close * np.longdouble(1) - (far & (gap > 0))])


def _positive_part(gap):
    return np.where(gap <= 0, 0, gap)  # NaN stays


# ---- classes


def multi_margin_loss(x, y, p=1, margin=1.0, weight=None):
    scores, labels = np.atleast_2d(x), np.atleast_1d(y)
    rows, classes = np.arange(len(scores)), scores.shape[-1]
    gaps = margin - scores[rows, labels][:, None] + scores
    active = (gaps > 0) & (np.arange(classes) != labels[:, None])
    factor = (1 if weight is None else weight[labels][:, None]) / np.longdouble(classes)
    slopes = np.where(active, factor * p * gaps ** (p - 1), 0)
    slopes[rows, labels] = -slopes.sum(-1)
    values = np.where(active, factor * gaps**p, 0).sum(-1)
    return Exact(values.reshape(y.shape), [slopes.reshape(x.shape)], axis=-1)


def multilabel_margin_loss(x, lists):
    rows, lists = np.atleast_1d(x), np.atleast_1d(lists)  # one score is a row of one class
    values, slopes = np.zeros(rows.shape[:-1], x.dtype), np.zeros_like(rows)
    for row in np.ndindex(rows.shape[:-1]):
        scores, listed = rows[row], lists[row]
        listed = listed[: np.argmax(np.append(listed, -1) < 0)]
        others = ~np.isin(np.arange(len(scores)), listed)
        for label in listed:
            gaps = 1 - scores[label] + scores
            active = others & (gaps > 0)
            values[row] += gaps[active].sum() / len(scores)
            slopes[row][active] += np.longdouble(1) / len(scores)
            slopes[row][label] -= active.sum() / np.longdouble(len(scores))
    return Exact(values, [slopes.reshape(x.shape)], axis=-1)


def _softmax(
    gives_logits,
    x,
    t,
    weight=None,
    ignore_index=-100,
    label_smoothing=0.0,
    z_loss=0.0,
    entropy=0.0,
    logit_scale=1.0,
    softcap=None,
    normalizer=None,
    sums_are_rounded=False,
):
    axis = 0 if x.ndim == 1 else 1
    classes = x.shape[axis]
    shape = [classes if i == axis else 1 for i in range(x.ndim)]
    w = np.ones(classes, np.longdouble).reshape(shape) if weight is None else weight.reshape(shape)
    smoothing = np.longdouble(label_smoothing)
    if t.dtype == np.longdouble:
        divisor, kept = x.size // classes, True
        target = w * ((1 - smoothing) * t + smoothing / classes)
    else:
        label = np.expand_dims(t, axis)
        hot = (np.arange(classes).reshape(shape) == label).astype(np.longdouble)
        kept = label != ignore_index
        divisor = (hot * w * kept).sum()
        target = kept * w * ((1 - smoothing) * hot + smoothing / classes)
    divisor = divisor if normalizer is None else normalizer
    if not gives_logits:
        return Exact(-(target * x).sum(axis), [-target], axis, divisor, kept)
    x, slope = _logits(x, logit_scale, softcap)
    maximum = x.max(axis, keepdims=True)
    shifted = x - maximum
    log_sum = np.log(np.exp(shifted).sum(axis, keepdims=True))
    log_p = shifted - log_sum
    mass = target.sum(axis, keepdims=True)
    # p - 1 is to be known to its own size; the difference from a soft target to that of the distribution, and
    # so is any where the sum of exponentials cannot be wider than the result.
    p = np.exp(log_p)
    is_soft = t.dtype == np.longdouble
    of_x = (mass, mass * (p - 1) - target) if is_soft or sums_are_rounded else (mass * p - target,)
    # Where no class takes part, what it would have said does not matter, though it be infinite; but a
    # probability of 0 times an infinite logarithm is NaN, in torch too.
    product = target * log_p if t.dtype == np.longdouble else np.where(target == 0, 0, target * log_p)
    value = (-product.sum(axis),)
    if z_loss:
        lse = maximum + log_sum
        value += (np.where(kept, z_loss * lse**2, 0).squeeze(axis),)
        of_x += (2 * z_loss * lse * p,)
    if entropy:
        p_log_p = np.where(p == 0, 0, p * log_p)
        h = -p_log_p.sum(axis, keepdims=True)
        value += (-np.where(kept, entropy * h, 0).squeeze(axis),)
        of_x += (entropy * p_log_p, entropy * h * p)
    derivatives = [tuple(s * term for term in of_x for s in slope), -(1 - smoothing) * w * log_p]
    # Of a sum that is at least 1, the logarithm is known to what 1 is rounded to.
    return Exact(value, derivatives, axis, divisor, kept, least_size=1.0)


def _logits(v, scale, cap):
    """What the softmax is taken of, and the derivative, which is a difference where there is a cap."""
    if not cap:
        return scale * v, (scale,)
    bounded = np.tanh(scale * v / cap)
    return cap * bounded, (scale, -scale * bounded**2)


# ---- vectors: a distance gives its value and its derivatives with respect to both vectors


def _norm(x, y, p=2.0, eps=1e-6):
    d = x - y + eps
    size = abs(d)
    if np.isinf(p):
        value = (size.max if p > 0 else size.min)(-1, keepdims=True)
        ties = (size == value) | np.isnan(size)
        slope = _sign(d) * ties / ties.sum(-1, keepdims=True)
    else:
        value = (size**p).sum(-1, keepdims=True) ** (1 / np.longdouble(p))
        slope = np.where(((d == 0) & (p < 2)) | (value == 0), 0, _sign(d) * (size / value) ** (p - 1))
    return value[..., 0], (slope,), (-slope,)


def _cosine(x, y):
    def length(v):
        return np.sqrt((v * v).sum(-1, keepdims=True))

    def along(v):
        return np.where(length(v) == 0, 0, cosine * v / (np.maximum(length(v), 1e-8) * length(v)))

    lengths = np.maximum(length(x), 1e-8) * np.maximum(length(y), 1e-8)
    cosine = (x * y).sum(-1, keepdims=True) / lengths
    return 1 - cosine[..., 0], (along(x), -y / lengths), (along(y), -x / lengths)


def _distance_of(function: Callable[..., Tensor] | None) -> Callable[..., Any]:
    if isinstance(function, torch.nn.PairwiseDistance):
        return partial(_norm, p=function.norm, eps=function.eps)
    if isinstance(function, partial):
        return partial(_norm, **function.keywords)
    return {None: _norm, L.euclidean_distance: partial(_norm, eps=0), L.cosine_distance: _cosine}[function]


def _triplet(distance, anchor, positive, negative, margin=1.0, swap=False):
    to_p, a_to_p, p_to_a = distance(anchor, positive)
    to_n, a_to_n, n_to_a = distance(anchor, negative)
    between, p_to_n, n_to_p = distance(positive, negative) if swap else (np.inf, (), ())
    share = np.where(to_n < between, 1, np.where(to_n > between, 0, np.longdouble(0.5)))
    gap = (margin, to_p, -np.minimum(to_n, between))
    share, active = share[..., None], (_total(gap) > 0)[..., None]
    derivatives = [
        tuple(active * factor * term for factor, terms in parts for term in terms)
        for parts in (
            ((1, a_to_p), (-share, a_to_n)),
            ((1, p_to_a), (share - 1, p_to_n)),
            ((-share, n_to_a), (share - 1, n_to_p)),
        )
    ]
    return Exact(_where(~(_total(gap) <= 0), *gap), derivatives, axis=-1)


def triplet_margin_loss(*vectors, p=2.0, eps=1e-6, **options):
    return _triplet(partial(_norm, p=p, eps=eps), *vectors, **options)


def triplet_margin_with_distance_loss(*vectors, distance_function=None, **options):
    return _triplet(_distance_of(distance_function), *vectors, **options)


def cosine_embedding_loss(x1, x2, t, margin=0.0):
    square_1, square_2 = ((x * x).sum(-1, keepdims=True) + EPSILON for x in (x1, x2))
    norms = np.sqrt(square_1 * square_2)
    cosine = (x1 * x2).sum(-1, keepdims=True) / norms
    angle, gap = cosine[..., 0], cosine[..., 0] - margin
    value = (*_where(t == 1, 1, -angle), *_where((t == -1) & ~(gap <= 0), angle, -margin))
    sign = np.where(t == 1, -1, (t == -1) & (gap > 0))[..., None]
    pairs = (x2 / norms, -cosine * x1 / square_1), (x1 / norms, -cosine * x2 / square_2)
    return Exact(value, [(sign * one, sign * other) for one, other in pairs], axis=-1)


FORMULAS: dict[str, Callable[..., Exact]] = {
    "cross_entropy": partial(_softmax, True),
    "nll_loss": partial(_softmax, False),
} | {
    formula.__name__: formula
    for formula in (
        binary_cross_entropy,
        binary_cross_entropy_with_logits,
        cosine_embedding_loss,
        gaussian_nll_loss,
        hinge_embedding_loss,
        huber_loss,
        kl_div,
        l1_loss,
        margin_ranking_loss,
        mse_loss,
        multi_margin_loss,
        multilabel_margin_loss,
        multilabel_soft_margin_loss,
        poisson_nll_loss,
        smooth_l1_loss,
        soft_margin_loss,
        triplet_margin_loss,
        triplet_margin_with_distance_loss,
    )
}

"""Losses of a softmax, and of margins between classes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from kit.exact.terms import Exact


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


FORMULAS: dict[str, Callable[..., Exact]] = {
    "cross_entropy": partial(_softmax, True),
    "nll_loss": partial(_softmax, False),
    "multi_margin_loss": multi_margin_loss,
    "multilabel_margin_loss": multilabel_margin_loss,
}

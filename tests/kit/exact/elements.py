"""Losses whose every element is for itself, and multilabel_soft_margin_loss, which averages rows of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kit.exact.terms import EPSILON, Exact, sign, where

PI = 4 * np.arctan(np.longdouble(1))


def _weighted(weight, value, *derivatives, mean_over_weight=False):
    w = np.longdouble(1) if weight is None else weight
    divisor = w.sum() if mean_over_weight and weight is not None else None
    weighted = [
        tuple(w * term for term in derivative) if isinstance(derivative, tuple) else w * derivative
        for derivative in derivatives
    ]
    return Exact(w * value, weighted, divisor=divisor)


# ---- regression


def l1_loss(x, t, weight=None):
    d = x - t
    return _weighted(weight, abs(d), sign(d), -sign(d), mean_over_weight=True)


def mse_loss(x, t, weight=None):
    d = x - t
    return _weighted(weight, d * d, 2 * d, -2 * d, mean_over_weight=True)


def smooth_l1_loss(x, t, beta=1.0):
    if beta == 0:
        return l1_loss(x, t)
    d = x - t
    far = abs(d) >= beta
    slope = np.where(far, sign(d), d / beta)
    return Exact(np.where(far, abs(d) - beta / 2, d * d / (2 * beta)), [slope, -slope])


def huber_loss(x, t, delta=1.0, weight=None):
    d = x - t
    far = abs(d) > delta
    slope = np.where(far, delta * sign(d), d)
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


def sigmoid_focal_loss(x, t, alpha=0.25, gamma=2, weight=None):
    log_p, log_q = -np.logaddexp(0, -x), -np.logaddexp(0, x)
    loss = np.where(t == 0, 0, -t * log_p) + np.where(t == 1, 0, -(1 - t) * log_q)
    log_u = np.logaddexp(np.log(t) + log_q, np.log(1 - t) + log_p)
    # u' / u, of which nothing vanishes or overflows.
    turn = (1 - 2 * t) * np.exp(log_p + log_q - log_u)
    turn = np.where(t == 1, -np.exp(log_p), np.where(t == 0, np.exp(log_q), turn))
    power = np.exp(gamma * log_u) if gamma else np.longdouble(1)
    share = alpha * t + (1 - alpha) * (1 - t) if alpha >= 0 else np.longdouble(1)
    steep = np.where(turn == 0, 0, gamma * loss * turn)
    of_x = (np.where(t == 1, -np.exp(log_q), np.exp(log_p) - t), steep)
    return _weighted(weight, share * power * loss, (share * power * of_x[0], share * power * of_x[1]))


def asymmetric_loss(x, t, gamma_neg=4, gamma_pos=1, clip=0.05, eps=1e-8, weight=None):
    clip, least = np.longdouble(clip or 0), np.log(np.longdouble(eps))
    log_p, log_q = -np.logaddexp(0, -x), -np.logaddexp(0, x)
    p, q = np.exp(log_p), np.exp(log_q)
    left = np.where(p < clip, 0, p - clip)
    # Near 1 and near 0, the logarithm of 1 - left.
    log_n = np.where(x > 0, np.log(np.minimum(q + clip, 1)), np.log1p(-left)) if clip else log_q
    loss = -t * np.where(log_p < least, least, log_p) - (1 - t) * np.where(log_n < least, least, log_n)
    slope = (
        np.where(log_p < least, 0, -t * q),
        np.where((log_n < least) | (p < clip), 0, (1 - t) * p * (q / (q + clip) if clip else 1)),
    )
    u = t * q + (1 - t) * left
    gamma = gamma_pos * t + gamma_neg * (1 - t)
    with_u = np.where(u > 0, u, 1)
    power = np.where(u > 0, with_u**gamma, gamma == 0)
    steep = gamma * np.where(u > 0, loss / with_u, 1) * p * q
    of_x = (*slope, np.where(p < clip, 0, steep * (1 - t)), -steep * t)
    return _weighted(weight, power * loss, tuple(power * term for term in of_x))


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
        value += where(t > 1, t * log_t, -t, np.log(2 * PI * t) / 2)
        of_t += (np.where(t > 1, log_t, 0 * log_t), *where(t > 1, 1 / (2 * t)))
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


FORMULAS: dict[str, Callable[..., Exact]] = {
    "asymmetric_loss": asymmetric_loss,
    "binary_cross_entropy": binary_cross_entropy,
    "binary_cross_entropy_with_logits": binary_cross_entropy_with_logits,
    "gaussian_nll_loss": gaussian_nll_loss,
    "hinge_embedding_loss": hinge_embedding_loss,
    "huber_loss": huber_loss,
    "kl_div": kl_div,
    "l1_loss": l1_loss,
    "margin_ranking_loss": margin_ranking_loss,
    "mse_loss": mse_loss,
    "multilabel_soft_margin_loss": multilabel_soft_margin_loss,
    "poisson_nll_loss": poisson_nll_loss,
    "sigmoid_focal_loss": sigmoid_focal_loss,
    "smooth_l1_loss": smooth_l1_loss,
    "soft_margin_loss": soft_margin_loss,
}

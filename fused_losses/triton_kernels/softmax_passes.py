"""Passes over rows longer than a chunk, which are read twice: for their sums, and for their gradients.

Arguments are those of `softmax_kernel.softmax` by the same names, or as in `softmax_chunks.py`; `x_rows`,
`t_rows`, `g_rows` and `gt_rows`, (ROWS), point to where the rows of logits, of probabilities and of their
gradients begin.
"""

import triton
import triton.language as tl

from fused_losses.triton_kernels.formulas.cross_entropy import excess
from fused_losses.triton_kernels.formulas.math import exp_of_rounded
from fused_losses.triton_kernels.memory import elements_of, store
from fused_losses.triton_kernels.softmax_chunks import (
    finite_maximum,
    largest_logits,
    load_logits,
    load_soft_targets,
    logit_gradients,
    probability_gradients,
)


@triton.jit
def sums_of_rows(
    x,
    x_rows,
    probabilities,
    t_rows,
    weight,
    smoothing,
    classes,
    live,
    counts,
    logit_scale,
    cap,
    SOFT: tl.constexpr,
    ENTROPY: tl.constexpr,
    WANTS_ARGMAX: tl.constexpr,
    ROUNDED: tl.constexpr,
    IN_ROWS: tl.constexpr,
    DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """What values and gradients are made of, (ROWS) each, by a pass from the first chunk to the last.

    Returns:
        m, s: The largest logit, and the sum of exp(x - m).
        mean_excess, mass, cross: A, Q and X of `formulas/cross_entropy.py`; 0 without an entropy or soft
            targets.
        largest: The class of the largest logit, int32; 0 unless that is asked for.
    """
    c = tl.arange(0, CHUNK)
    running = tl.full((ROWS,), float("-inf"), DTYPE)
    m = tl.zeros((ROWS,), DTYPE)
    sums = tl.zeros((ROWS, CHUNK), DTYPE)
    masses = sums
    crosses = sums
    excesses = sums
    best = running
    largest = tl.zeros((ROWS,), tl.int32)
    for k in range(0, tl.cdiv(classes, CHUNK)):
        at = k * CHUNK + c
        in_row = at < classes
        mask = counts[:, None] & in_row[None, :]
        logits = load_logits(x, x_rows, at, in_row, live, counts, logit_scale, cap, DTYPE, IN_ROWS)
        if WANTS_ARGMAX:
            best_of_chunk, class_of_chunk = largest_logits(logits, at, in_row)
            largest = tl.where(best_of_chunk > best, class_of_chunk, largest)
            best = tl.maximum(best, best_of_chunk)
        larger = tl.maximum(running, tl.max(logits, axis=1))
        reference = finite_maximum(larger)
        relative = logits - reference[:, None]
        # Brings what was added up so far from the previous maximum to the larger one.
        shrinkage = exp_of_rounded(running - reference, ROUNDED)[:, None]
        if ENTROPY:
            moved = (excesses + sums * (m - reference)[:, None]) * shrinkage
            excesses = tl.where(shrinkage != 0, moved, 0.0)
            excesses += excess(exp_of_rounded(relative, ROUNDED), relative)
        sums = sums * shrinkage
        sums += exp_of_rounded(relative, ROUNDED)
        q = load_soft_targets(
            probabilities,
            t_rows,
            weight,
            smoothing,
            classes,
            at,
            in_row,
            live,
            counts,
            sums,
            SOFT,
            DTYPE,
            IN_ROWS,
        )
        if q is not None:
            crosses += masses * (m - reference)[:, None] + tl.where(mask, q * relative, 0.0)
            masses += q
        running = larger
        m = reference
    s = tl.sum(sums, axis=1)
    mean_excess = m * 0
    mass = m * 0
    cross = m * 0
    if ENTROPY:
        mean_excess = tl.sum(excesses, axis=1) / s
    if SOFT:
        mass = tl.sum(masses, axis=1)
        cross = tl.sum(crosses, axis=1)
        if probabilities[0] is None and weight[0] is None:
            # Hundreds of equal summands are rounded to the same side.
            mass = m * 0 + smoothing.to(DTYPE)
    return m, s, mean_excess, mass, cross, largest


@triton.jit
def probability_mass(
    probabilities,
    t_rows,
    weight,
    smoothing,
    classes,
    live,
    counts,
    IN_ROWS: tl.constexpr,
    DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """The sum Q of each row's soft targets, (ROWS), where there are probabilities."""
    masses = tl.zeros((ROWS, CHUNK), DTYPE)
    for k in range(0, tl.cdiv(classes, CHUNK)):
        c = k * CHUNK + tl.arange(0, CHUNK)
        masses += load_soft_targets(
            probabilities,
            t_rows,
            weight,
            smoothing,
            classes,
            c,
            c < classes,
            live,
            counts,
            masses,
            True,
            DTYPE,
            IN_ROWS,
        )
    return tl.sum(masses, axis=1)


@triton.jit
def store_gradients_of_rows(
    x,
    x_rows,
    probabilities,
    t_rows,
    weight,
    grad_input,
    g_rows,
    grad_probabilities,
    gt_rows,
    smoothing,
    classes,
    y,
    m,
    s,
    slope,
    numerator_factor,
    excess_factor,
    probability_factor,
    live,
    counts,
    logit_scale,
    cap,
    SOFT: tl.constexpr,
    SUMS_OTHERS: tl.constexpr,
    ROUNDED: tl.constexpr,
    IN_ROWS: tl.constexpr,
    DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Writes gradients, but for the targets' own elements, from the last chunk to the first.

    Caches may still hold the last chunks, which were read last.

    Returns:
        The sum of exp(x - m) over all classes but y, (ROWS), if SUMS_OTHERS; else 0.
    """
    chunks = tl.cdiv(classes, CHUNK)
    sums = tl.zeros((ROWS, CHUNK), DTYPE)
    for k in range(0, chunks):
        c = (chunks - 1 - k) * CHUNK + tl.arange(0, CHUNK)
        in_row = c < classes
        mask = counts[:, None] & in_row[None, :]
        stored = live[:, None] & in_row[None, :]
        logits = load_logits(x, x_rows, c, in_row, live, counts, logit_scale, cap, DTYPE, IN_ROWS)
        relative = logits - m[:, None]
        q = load_soft_targets(
            probabilities,
            t_rows,
            weight,
            smoothing,
            classes,
            c,
            in_row,
            live,
            counts,
            relative,
            SOFT,
            DTYPE,
            IN_ROWS,
        )
        if grad_probabilities[0] is not None:
            gradient = probability_gradients(relative, s, probability_factor, weight, c, in_row, DTYPE)
            store(elements_of(grad_probabilities, gt_rows[:, None], c[None, :]), gradient, stored)
        if grad_input[0] is not None:
            e = exp_of_rounded(relative, ROUNDED)
            if SUMS_OTHERS:
                sums += tl.where(c[None, :] == y[:, None], 0.0, e)
            gradient = logit_gradients(
                e, relative, q, logits, mask, slope, numerator_factor, excess_factor, logit_scale, cap
            )
            store(elements_of(grad_input, g_rows[:, None], c[None, :]), gradient, stored)
    if SUMS_OTHERS:
        return tl.sum(sums, axis=1)
    else:
        return m * 0

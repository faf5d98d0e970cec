"""Passes over rows longer than a chunk, which are read twice: for their sums, and for their gradients.

Arguments are those of `softmax_kernel.softmax` by the same names, or as in `softmax_chunks.py`; `x_rows`,
`t_rows`, `g_rows` and `gt_rows`, (ROWS), point to where the blocks of logits, of probabilities and of their
gradients begin. `ends` are the logits at the ends of shifted rows, which no block has.
"""

import triton
import triton.language as tl

from fused_losses.triton_kernels.class_blocks import (
    are_stored,
    largest_of_classes,
    of_rows,
    places_from,
    sum_of_classes,
    zeros,
)
from fused_losses.triton_kernels.formulas.cross_entropy import excess, exponents, numerators
from fused_losses.triton_kernels.formulas.math import exp_of_rounded
from fused_losses.triton_kernels.memory import elements_of, store
from fused_losses.triton_kernels.softmax_chunks import (
    finite_maximum,
    kept_of,
    largest_logits,
    load_logits,
    load_soft_targets,
    logit_gradients,
    masks_of,
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
    chunks,
    live,
    counts,
    skipped,
    ends,
    logit_scale,
    cap,
    SOFT: tl.constexpr,
    ENTROPY: tl.constexpr,
    WANTS_ARGMAX: tl.constexpr,
    ROUNDED: tl.constexpr,
    IN_ROWS: tl.constexpr,
    DTYPE: tl.constexpr,
    PACK: tl.constexpr,
    SHIFTED: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """What values and gradients are made of, (ROWS) each, by a pass from the first chunk to the last.

    Returns:
        m, s: The largest logit, and the sum of exp(x - m).
        mean_excess, mass, cross: A, Q and X of `formulas/cross_entropy.py`; 0 without an entropy or soft
            targets.
        largest: The place of the largest logit, int32; 0 unless that is asked for.
    """
    running = tl.full((ROWS,), float("-inf"), DTYPE)
    m = tl.zeros((ROWS,), DTYPE)
    s = tl.zeros((ROWS,), DTYPE)
    if SHIFTED:
        running = largest_of_classes(ends)
        m = finite_maximum(running)
        s = sum_of_classes(exp_of_rounded(ends - of_rows(m), ROUNDED))
    sums = zeros(PARTS, ROWS, WIDTH, DTYPE)
    masses = sums
    crosses = sums
    excesses = sums
    best = running
    largest = tl.zeros((ROWS,), tl.int32)
    for k in range(0, chunks):
        i = places_from(k * PARTS * WIDTH, PARTS, WIDTH)
        read, mask = masks_of(i, live, counts, skipped, classes, PACK, SHIFTED, IN_ROWS)
        kept = kept_of(counts, IN_ROWS)
        logits = load_logits(x, x_rows, i, read, kept, mask, logit_scale, cap, ROUNDED, DTYPE)
        if WANTS_ARGMAX:
            best_of_chunk, place_in_chunk = largest_logits(logits, i, mask)
            largest = tl.where(best_of_chunk > best, place_in_chunk, largest)
            best = tl.maximum(best, best_of_chunk)
        larger = tl.maximum(running, largest_of_classes(logits))
        reference = finite_maximum(larger)
        relative = logits - of_rows(reference)
        # Brings what was added up so far from the previous maximum to the larger one.
        shrinkage = exp_of_rounded(running - reference, ROUNDED)
        if SHIFTED:
            s *= shrinkage
        shrinkage = of_rows(shrinkage)
        if ENTROPY:
            moved = (excesses + sums * of_rows(m - reference)) * shrinkage
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
            i,
            read,
            kept,
            mask,
            sums,
            SOFT,
            DTYPE,
        )
        if q is not None:
            crosses += masses * of_rows(m - reference) + tl.where(mask, q * relative, 0.0)
            masses += q
        running = larger
        m = reference
    s += sum_of_classes(sums)
    mean_excess = m * 0
    mass = m * 0
    cross = m * 0
    if ENTROPY:
        mean_excess = sum_of_classes(excesses) / s
    if SOFT:
        mass = sum_of_classes(masses)
        cross = sum_of_classes(crosses)
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
    chunks,
    live,
    counts,
    IN_ROWS: tl.constexpr,
    DTYPE: tl.constexpr,
    PACK: tl.constexpr,
    SHIFTED: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """The sum Q of each row's soft targets, (ROWS), where there are probabilities."""
    masses = zeros(PARTS, ROWS, WIDTH, DTYPE)
    for k in range(0, chunks):
        i = places_from(k * PARTS * WIDTH, PARTS, WIDTH)
        read, mask = masks_of(i, live, counts, 0, classes, PACK, SHIFTED, IN_ROWS)
        kept = kept_of(counts, IN_ROWS)
        masses += load_soft_targets(
            probabilities,
            t_rows,
            weight,
            smoothing,
            classes,
            i,
            read,
            kept,
            mask,
            masses,
            True,
            DTYPE,
        )
    return sum_of_classes(masses)


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
    chunks,
    y,
    m,
    s,
    power,
    offset,
    slope,
    numerator_factor,
    excess_factor,
    probability_factor,
    live,
    counts,
    skipped,
    logit_scale,
    cap,
    SOFT: tl.constexpr,
    SUMS_OTHERS: tl.constexpr,
    ROUNDED: tl.constexpr,
    IN_ROWS: tl.constexpr,
    DTYPE: tl.constexpr,
    PACK: tl.constexpr,
    SHIFTED: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Writes gradients, but for the targets' own elements, from the last chunk to the first.

    Caches may still hold the last chunks, which were read last.

    Returns:
        The sum of numerators over all classes but y, (ROWS), if SUMS_OTHERS; else 0.
    """
    # Capped logits are finite beyond a row's end, too, where nothing is stored; and in rows that do not
    # count, whose factors are 0. Numerators that are added up have to be 0 there.
    MASKED: tl.constexpr = cap is None or SUMS_OTHERS or not ROUNDED
    sums = zeros(PARTS, ROWS, WIDTH, DTYPE)
    for k in range(0, chunks):
        i = places_from((chunks - 1 - k) * PARTS * WIDTH, PARTS, WIDTH)
        read, mask = masks_of(i, live, counts, skipped, classes, PACK, SHIFTED, IN_ROWS)
        kept = kept_of(counts, IN_ROWS)
        stored = are_stored(i, live, skipped, classes, PACK, SHIFTED)
        if not MASKED:
            mask = None
        logits = load_logits(x, x_rows, i, read, kept, mask, logit_scale, cap, ROUNDED, DTYPE)
        relative = logits - of_rows(m)
        q = load_soft_targets(
            probabilities,
            t_rows,
            weight,
            smoothing,
            classes,
            i,
            read,
            kept,
            mask,
            relative,
            SOFT,
            DTYPE,
        )
        if grad_probabilities[0] is not None:
            gradient = probability_gradients(relative, s, probability_factor, weight, i, classes, DTYPE)
            store(elements_of(grad_probabilities, of_rows(gt_rows), i), gradient, stored)
        if grad_input[0] is not None:
            e = numerators(exponents(logits, of_rows(power), of_rows(offset), ROUNDED), ROUNDED)
            if SUMS_OTHERS:
                sums += tl.where(i == of_rows(y.to(tl.int32)), 0.0, e)
            gradient = logit_gradients(
                e,
                relative,
                q,
                logits,
                mask,
                slope,
                numerator_factor,
                excess_factor,
                cap,
                ROUNDED,
            )
            store(elements_of(grad_input, of_rows(g_rows), i), gradient, stored)
    if SUMS_OTHERS:
        return sum_of_classes(sums)
    else:
        return m * 0

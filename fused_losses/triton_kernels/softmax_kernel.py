"""The kernel of softmax cross-entropy: tiles of positions times classes, one softmax for each position.

`softmax` comes last. For each tile, it finds m, s and the other numbers of rows (`formulas/cross_entropy.py`
defines them) in one of three ways: GIVEN by an earlier launch; RESIDENT, from a chunk that holds whole rows;
or chunk by chunk. It writes statistics and losses; then gradients, from what is resident or by another pass;
and at last each target's own element of the gradient.
"""

import triton
import triton.language as tl

from fused_losses.triton_kernels.class_blocks import (
    are_stored,
    block_starts,
    ends_of,
    in_packs,
    largest_of_classes,
    of_rows,
    places_from,
    skipped_of,
    sum_of_classes,
)
from fused_losses.triton_kernels.formulas.cross_entropy import (
    cross_of_exponents,
    excess,
    exponents,
    gradient_at_hot,
    numerators,
    power_of,
    row_value,
    scaled_logit,
    slope_of_logit,
    slope_of_logits,
    terms_slope,
    terms_value,
)
from fused_losses.triton_kernels.formulas.math import scalar
from fused_losses.triton_kernels.iteration import turns
from fused_losses.triton_kernels.labels import load_labels, mean_divisor, weight_of_labels
from fused_losses.triton_kernels.memory import elements_of, load_numbers, row_starts, store, store_numbers
from fused_losses.triton_kernels.reduce import finish, upstream_of_reduced
from fused_losses.triton_kernels.softmax_chunks import (
    finite_maximum,
    kept_of,
    largest_logits,
    load_logits,
    load_soft_targets,
    logit_gradients,
    masks_of,
    probability_gradients,
    smoothing_mass,
)
from fused_losses.triton_kernels.softmax_passes import (
    probability_mass,
    store_gradients_of_rows,
    sums_of_rows,
)


@triton.jit
def _store_statistics(
    statistics_ptr, positions, position, live, counts, m, s, mean_excess, ENTROPY: tl.constexpr
):
    tl.store(statistics_ptr + position, m, mask=live)
    tl.store(statistics_ptr + positions + position, tl.where(counts, s, 1.0), mask=live)
    if ENTROPY:
        tl.store(statistics_ptr + 2 * positions + position, tl.where(counts, mean_excess, 0.0), mask=live)


@triton.jit(
    do_not_specialize=[
        "ignore_index",
        "smoothing",
        "divisor",
        "z_loss",
        "entropy",
        "logit_scale",
        "softcap",
    ],
    debug=True,
)
def softmax(
    x,
    labels,
    probabilities,
    weight,
    losses_upstream,
    grad_input,
    grad_probabilities,
    losses,
    lse_gradient,
    statistics_ptr,
    argmax_ptr,
    upstream_ptr,
    loss_ptr,
    partials_ptr,
    arrived_ptr,
    divisor_ptr,
    positions: "i64",
    sizes,
    classes,
    ignore_index: "i64",
    smoothing: "fp64",
    divisor: "fp64",
    z_loss: "fp64",
    entropy: "fp64",
    logit_scale: "fp64",
    softcap: "fp64",
    COUNTS: tl.constexpr,
    SMOOTHED: tl.constexpr,
    TERMS: tl.constexpr,
    SCALED: tl.constexpr,
    ENTROPY: tl.constexpr,
    CAPPED: tl.constexpr,
    GIVEN: tl.constexpr,
    READY: tl.constexpr,
    ROUNDED: tl.constexpr,
    IN_ROWS: tl.constexpr,
    INDEX: tl.constexpr,
    DTYPE: tl.constexpr,
    PACK: tl.constexpr,
    SHIFTED: tl.constexpr,
    SPAN: tl.constexpr,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    WIDTH: tl.constexpr,
    RESIDENT: tl.constexpr,
):
    """Walks over positions, whose sizes and tensors are as in `iteration.position_arguments`.

    Classes are the axis. A tensor that is absent does not exist, or is not wanted. (positions) is the shape
    of what has one number for each position.

    Takes:
        x: (positions, classes), the logits as the user gives them.
        labels: (positions), int64 or uint8; absent if there are probabilities.
        probabilities: (positions, classes), or absent.
        weight: (pointer, stride) of (classes) factors, or (None,).
        losses_upstream: (positions), the upstream gradient of each loss.
        grad_input: (positions, classes), where the logits' gradient goes, which may be the logits' own
            memory.
        grad_probabilities: (positions, classes), where the probabilities' gradient goes.
        losses: (positions), where losses go.
        lse_gradient: (positions), the upstream gradient of each log-sum-exp.
        statistics_ptr: (2 or 3, positions), contiguous, in DTYPE: m, s and, with an entropy, the mean excess
            of each position. They are read if they are GIVEN, which saves the first pass, else written. None:
            neither.
        argmax_ptr: (positions), contiguous, int64: where the class of the largest logit goes, -1 where a
            position does not count. None: nowhere.
        upstream_ptr, loss_ptr, partials_ptr, arrived_ptr: See `reduce.reduction_arguments`.
        divisor, divisor_ptr, COUNTS: See `labels.mean_divisor`.
        ignore_index: The label of positions that do not count.
        SMOOTHED: Whether smoothing is not 0.
        TERMS: Whether z_loss, entropy or lse_gradient have an effect; else they are not read.
        SCALED, ENTROPY, CAPPED: Whether logit_scale is not 1, and entropy and softcap are not 0.
        READY: See `operators.EngineCall`.
        ROUNDED: The gradient is rounded to 16 bits.
        IN_ROWS: Classes lie side by side, and not positions.
        PACK, SHIFTED, ROWS, PARTS, WIDTH: See `class_blocks.py`.
        SPAN: See `memory.offset_of`.
        RESIDENT: A chunk holds whole rows: read once, they stay in registers. Others are read twice.
    """
    HOT: tl.constexpr = labels[0] is not None
    SOFT: tl.constexpr = SMOOTHED or not HOT
    # All soft targets are equal.
    SAME: tl.constexpr = SMOOTHED and HOT and weight[0] is None
    WANTS_ARGMAX: tl.constexpr = argmax_ptr is not None
    # 16 bits cannot tell; with more, p - 1 is minus the sum of the others: exact where p is nearly 1.
    SUMS_OTHERS: tl.constexpr = HOT and not ROUNDED
    # What divides the distance between rows.
    STEP: tl.constexpr = 1 if SHIFTED else PACK
    classes = in_packs(classes, PACK, SHIFTED)
    scale = upstream_of_reduced(upstream_ptr)
    if READY:
        if scale == 1:
            return
    smoothing = scalar(smoothing)
    divisor = mean_divisor(
        divisor, divisor_ptr, labels, weight, sizes, positions, classes, ignore_index, COUNTS, INDEX
    )
    scale = (scale / divisor).to(DTYPE)
    keep_soft = (1 - smoothing).to(DTYPE)
    # What is None is compiled out.
    factor = scalar(logit_scale) if SCALED or CAPPED else None
    if TERMS:
        z_loss = scalar(z_loss)
        entropy = scalar(entropy)
    cap = scalar(softcap) if CAPPED else None
    shared_slope = slope_of_logits(factor, cap, ROUNDED).to(DTYPE) if factor is not None else 1.0

    # A loop over a single chunk is none to the compiler.
    chunks = 1 if RESIDENT else tl.cdiv(classes, PARTS * WIDTH)
    if GIVEN and SMOOTHED and HOT:
        common_mass = smoothing_mass(weight, smoothing, classes, chunks, PARTS, WIDTH, DTYPE)
    total = tl.zeros((ROWS,), tl.float64)
    first, end, step = turns(positions, ROWS, INDEX)
    for begin in range(first, end, step):
        position = begin + tl.arange(0, ROWS)
        live = position < end
        x_rows = row_starts(x, sizes, position, STEP, SPAN)
        t_rows = row_starts(probabilities, sizes, position, STEP, SPAN)
        skipped = skipped_of(x_rows, PACK, SHIFTED)
        x_rows = block_starts(x_rows, skipped, PACK, SHIFTED)
        counts = live
        hot = tl.zeros((ROWS,), DTYPE)
        x_y = hot
        w_y = hot + 1
        y = position * 0
        ends = None
        if HOT:
            y, counts = load_labels(labels, sizes, position, live, classes, ignore_index)
            w_y = weight_of_labels(weight, y, counts, DTYPE)
            y -= skipped
            hot = w_y * keep_soft
            x_y = tl.load(elements_of(x, x_rows, y), mask=counts, other=0).to(DTYPE)
            if factor is not None:
                x_y = scaled_logit(x_y, factor, cap, ROUNDED)
            if SHIFTED:
                i_ends, stored_ends = ends_of(live, skipped, classes, PACK)
                in_ends = of_rows(counts) & stored_ends
                ends = load_logits(x, x_rows, i_ends, in_ends, None, in_ends, factor, cap, ROUNDED, DTYPE)
            if grad_input[0] is not None:
                # In place, no thread may write what another one has yet to read.
                tl.debug_barrier()
        slope = tl.where(counts, scale, 0.0)
        if losses_upstream[0] is not None:
            slope *= load_numbers(losses_upstream, sizes, position, counts, 0, DTYPE)

        mass = hot * 0
        cross = mass
        mean_excess = mass
        if GIVEN:
            m = tl.load(statistics_ptr + position, mask=counts, other=0)
            s = tl.load(statistics_ptr + positions + position, mask=counts, other=1)
            if ENTROPY:
                mean_excess = tl.load(statistics_ptr + 2 * positions + position, mask=counts, other=0)
            if not HOT:
                mass = probability_mass(
                    probabilities,
                    t_rows,
                    weight,
                    smoothing,
                    classes,
                    chunks,
                    live,
                    counts,
                    IN_ROWS,
                    DTYPE,
                    PACK,
                    SHIFTED,
                    ROWS,
                    PARTS,
                    WIDTH,
                )
            elif SMOOTHED:
                mass += common_mass
        elif RESIDENT:
            i = places_from(0, PARTS, WIDTH)
            read, mask = masks_of(i, live, counts, skipped, classes, PACK, SHIFTED, IN_ROWS)
            kept = kept_of(counts, IN_ROWS)
            logits = load_logits(x, x_rows, i, read, kept, mask, factor, cap, ROUNDED, DTYPE)
            # Rows that do not count hold nothing but -inf: relative to 0, all that follows of them is 0.
            m = largest_of_classes(logits)
            if SHIFTED:
                m = tl.maximum(m, largest_of_classes(ends))
            m = finite_maximum(m)
            relative = logits - of_rows(m)
            power, offset, unit = power_of(m, ROUNDED)
            t = exponents(logits, of_rows(power), of_rows(offset), ROUNDED)
            e = numerators(t, ROUNDED)
            e_sum = sum_of_classes(e)
            if SHIFTED:
                e_ends = exponents(ends, of_rows(power), of_rows(offset), ROUNDED)
                e_sum += sum_of_classes(numerators(e_ends, ROUNDED))
            s = e_sum / unit
            if ENTROPY:
                mean_excess = sum_of_classes(excess(e, relative)) / e_sum
            if WANTS_ARGMAX:
                _, largest = largest_logits(logits, i, mask)
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
                e,
                SOFT,
                DTYPE,
            )
            if SAME:
                mass = hot * 0 + smoothing.to(DTYPE)
                cross = sum_of_classes(tl.where(mask, t, 0.0)) * (smoothing / classes).to(DTYPE)
            elif SOFT:
                mass = sum_of_classes(q)
                cross = sum_of_classes(tl.where(mask, q * t, 0.0))
            cross = cross_of_exponents(cross, mass, m, power, offset, ROUNDED)
        else:
            m, s, mean_excess, mass, cross, largest = sums_of_rows(
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
                factor,
                cap,
                SOFT,
                ENTROPY,
                WANTS_ARGMAX,
                ROUNDED,
                IN_ROWS,
                DTYPE,
                PACK,
                SHIFTED,
                ROWS,
                PARTS,
                WIDTH,
            )

        if GIVEN or not RESIDENT:
            power, offset, unit = power_of(m, ROUNDED)
            e_sum = s * unit
        if not GIVEN and statistics_ptr is not None:
            _store_statistics(statistics_ptr, positions, position, live, counts, m, s, mean_excess, ENTROPY)
        if WANTS_ARGMAX:
            tl.store(argmax_ptr + position, tl.where(counts, largest, -1).to(tl.int64), mask=live)
        if loss_ptr is not None or losses[0] is not None:
            value = row_value(m, s, hot, x_y, mass, cross, HOT, SOFT)
            if TERMS:
                value += terms_value(m, s, mean_excess, z_loss, entropy, ENTROPY)
            value = tl.where(counts, value, 0.0)
            total += value
            store_numbers(losses, sizes, position, live, value)

        if grad_input[0] is not None or grad_probabilities[0] is not None:
            g_rows = row_starts(grad_input, sizes, position, STEP, SPAN)
            g_rows = block_starts(g_rows, skipped, PACK, SHIFTED)
            gt_rows = row_starts(grad_probabilities, sizes, position, STEP, SPAN)
            x_slope = slope * shared_slope
            numerator_factor = tl.where(counts, (hot + mass) * x_slope / e_sum, 0.0)
            if TERMS:
                term_factor = terms_slope(m, s, mean_excess, z_loss, entropy, ENTROPY) * x_slope
                if lse_gradient[0] is not None:
                    lse_slope = load_numbers(lse_gradient, sizes, position, counts, 0, DTYPE)
                    term_factor += lse_slope * shared_slope
                term_factor = tl.where(counts, term_factor / e_sum, 0.0)
                numerator_factor += term_factor
            excess_factor = tl.where(counts, entropy.to(DTYPE) * x_slope / e_sum, 0.0) if ENTROPY else None
            probability_factor = keep_soft * slope
            if RESIDENT and not GIVEN:
                stored = are_stored(i, live, skipped, classes, PACK, SHIFTED)
                if grad_input[0] is not None:
                    gradient = logit_gradients(
                        e,
                        relative,
                        q,
                        logits,
                        mask,
                        x_slope,
                        numerator_factor,
                        excess_factor,
                        cap,
                        ROUNDED,
                    )
                    store(elements_of(grad_input, of_rows(g_rows), i), gradient, stored)
                if grad_probabilities[0] is not None:
                    gradient = probability_gradients(
                        relative, s, probability_factor, weight, i, classes, DTYPE
                    )
                    store(elements_of(grad_probabilities, of_rows(gt_rows), i), gradient, stored)
                if SUMS_OTHERS:
                    others = sum_of_classes(tl.where(i == of_rows(y.to(tl.int32)), 0.0, e))
            else:
                others = store_gradients_of_rows(
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
                    x_slope,
                    numerator_factor,
                    excess_factor,
                    probability_factor,
                    live,
                    counts,
                    skipped,
                    factor,
                    cap,
                    SOFT,
                    SUMS_OTHERS,
                    ROUNDED,
                    IN_ROWS,
                    DTYPE,
                    PACK,
                    SHIFTED,
                    ROWS,
                    PARTS,
                    WIDTH,
                )
            if SHIFTED and grad_input[0] is not None:
                e_ends = exponents(ends, of_rows(power), of_rows(offset), ROUNDED)
                e_ends = numerators(e_ends, ROUNDED)
                gradient = logit_gradients(
                    e_ends,
                    None,
                    None,
                    ends,
                    of_rows(counts),
                    x_slope,
                    numerator_factor,
                    None,
                    cap,
                    ROUNDED,
                )
                store(elements_of(grad_input, of_rows(g_rows), i_ends), gradient, stored_ends)
                if SUMS_OTHERS:
                    others += sum_of_classes(tl.where(i_ends == of_rows(y.to(tl.int32)), 0.0, e_ends))
            if HOT:
                # One element of those stored above, by whichever thread: all must be there before.
                tl.debug_barrier()
                e_y = numerators(exponents(x_y, power, offset, ROUNDED), ROUNDED)
                if not SUMS_OTHERS:
                    others = e_sum - e_y
                q_y = w_y * (smoothing / classes).to(DTYPE)
                gradient_y = gradient_at_hot(e_y, others, e_sum, hot, mass, q_y, SOFT) * x_slope
                if TERMS:
                    gradient_y += e_y * term_factor
                    if ENTROPY:
                        gradient_y += excess(e_y, x_y - m) * excess_factor
                if cap is not None:
                    gradient_y *= slope_of_logit(x_y, cap, ROUNDED)
                store(elements_of(grad_input, g_rows, y), gradient_y, counts)
    if loss_ptr is not None:
        finish(tl.sum(total), divisor, loss_ptr, partials_ptr, arrived_ptr)

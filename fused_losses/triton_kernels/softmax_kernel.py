"""Softmax cross-entropy: tiles of positions times classes, one softmax for each position."""

import triton
import triton.language as tl

from fused_losses.triton_kernels.formulas.cross_entropy import (
    gradient_at_hot,
    moment,
    scaled_logit,
    slope_of_logit,
    terms_of_row,
    terms_slope,
    value_of_row,
)
from fused_losses.triton_kernels.formulas.math import exp_of_rounded, scalar
from fused_losses.triton_kernels.iteration import offset_of, turns
from fused_losses.triton_kernels.labels import LABELS_PER_STEP, load_labels, weight_of_all
from fused_losses.triton_kernels.reduce import finish, upstream_of_reduced
from fused_losses.triton_kernels.softmax_chunks import (
    load_chunk,
    load_logits,
    load_weight,
    mass_of_smoothing,
    rows_of,
    soft_of_chunk,
    store_chunk,
)


@triton.jit
def _of_numerators(e, relative, of_numerator, of_moment):
    """What numerators make of a chunk's gradient; `of_moment` is None without an entropy."""
    if of_moment is None:
        return e * of_numerator[:, None]
    else:
        return e * of_numerator[:, None] + moment(e, relative) * of_moment[:, None]


@triton.jit
def _of_given(g, logits, mask, logit_scale, cap):
    """The gradient of logits as they are given."""
    if logit_scale is None:
        return g
    elif cap is None:
        return g * slope_of_logit(logits, logit_scale, cap)
    else:
        # The slope at -inf, of rows that do not count, is infinite.
        return tl.where(mask, g * slope_of_logit(logits, logit_scale, cap), 0.0)


@triton.jit
def _largest(logits, c, in_row):
    """A chunk's largest logits, and the first of the classes that have them; NaN is passed over."""
    numbers = tl.where(logits == logits, logits, float("-inf"))
    largest = tl.max(numbers, axis=1)
    is_largest = (numbers == largest[:, None]) & in_row[None, :]
    return largest, tl.min(tl.where(is_largest, c[None, :], 2**31 - 1), axis=1)


@triton.jit
def _finite(m):
    """A maximum to subtract: of nothing but -inf, 0, so that exponentials are 0 and not NaN."""
    return tl.where(m == float("-inf"), 0.0, m)


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
    upstream,
    of_input,
    of_probabilities,
    losses,
    lse_gradient,
    statistics_ptr,
    argmax_ptr,
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
    ENTROPY: tl.constexpr,
    CAPPED: tl.constexpr,
    GIVEN: tl.constexpr,
    READY: tl.constexpr,
    ROUNDED: tl.constexpr,
    IN_ROWS: tl.constexpr,
    INDEX: tl.constexpr,
    T: tl.constexpr,
    ROWS: tl.constexpr,
    CHUNK: tl.constexpr,
    RESIDENT: tl.constexpr,
):
    """A tensor is a pointer (None: absent), its stride along classes, and its strides along positions.

    What has one number per position lacks the first stride; an upstream gradient of the reduced loss has None
    instead of strides.
    RESIDENT rows fit into a chunk: read once, they stay in registers. Others are read twice, the second time
    from their end, where the caches still hold them. GIVEN statistics, a row's maximum, sum of exponentials
    and, with an ENTROPY, average of x - m, make the first pass unnecessary; else they are written, if there
    is room for them. Without TERMS, logits are what they are, and `lse_gradient` is not there.
    IN_ROWS: classes lie side by side, and not positions. COUNTS: the divisor is the weight of all labels,
    added up by each program.
    """
    HOT: tl.constexpr = labels[0] is not None
    SOFT: tl.constexpr = SMOOTHED or not HOT
    # 16 bits cannot tell; with more, p - 1 is minus the sum of the others: exact where p is nearly 1.
    SUMS_OTHERS: tl.constexpr = HOT and not ROUNDED
    scale = upstream_of_reduced(upstream)
    if READY:
        if scale == 1:
            return
    divisor = scalar(divisor)
    smoothing = scalar(smoothing)
    if COUNTS:
        divisor = weight_of_all(
            labels, weight, sizes, positions, classes, ignore_index, LABELS_PER_STEP, INDEX
        )
    elif divisor_ptr is not None:
        divisor = tl.load(divisor_ptr).to(tl.float64)
    scale = (scale / divisor).to(T)
    keep_soft = (1 - smoothing).to(T)
    # What is None is compiled out.
    if TERMS:
        factor = scalar(logit_scale)
        z_loss = scalar(z_loss)
        entropy = scalar(entropy)
    else:
        factor = None
    cap = scalar(softcap) if CAPPED else None

    chunks = tl.cdiv(classes, CHUNK)
    if GIVEN and SMOOTHED and HOT:
        common_mass = mass_of_smoothing(weight, smoothing, classes, chunks, CHUNK, T)
    total = tl.zeros((ROWS,), tl.float64)
    first, end, step = turns(positions, ROWS, INDEX)
    for begin in range(first, end, step):
        position = begin + tl.arange(0, ROWS)
        live = position < end
        x_rows = rows_of(x, sizes, position)
        t_rows = rows_of(probabilities, sizes, position)
        counts = live
        hot = tl.zeros((ROWS,), T)
        x_y = hot
        y = position * 0
        w_y = hot + 1
        if HOT:
            y, counts = load_labels(labels, sizes, position, live, classes, ignore_index)
            if weight[0] is not None:
                w_y = tl.load(weight[0] + y * weight[1], mask=counts, other=0).to(T)
            hot = w_y * keep_soft
            x_y = tl.load(x_rows + y * x[1], mask=counts, other=0).to(T)
            if TERMS:
                x_y = scaled_logit(x_y, factor, cap)
            if of_input[0] is not None:
                # In place, no one may write what another one has yet to read.
                tl.debug_barrier()
        slope = tl.where(counts, scale, 0.0)
        if upstream[1] is not None:
            u = tl.load(upstream[0] + offset_of(position, sizes, upstream[1]), mask=counts, other=0)
            slope *= u.to(T)

        c = tl.arange(0, CHUNK)
        mass = hot * 0
        cross = mass
        average = mass
        if GIVEN:
            m = tl.load(statistics_ptr + position, mask=counts, other=0)
            s = tl.load(statistics_ptr + positions + position, mask=counts, other=1)
            if ENTROPY:
                average = tl.load(statistics_ptr + 2 * positions + position, mask=counts, other=0)
            if not HOT:
                masses = tl.zeros((ROWS, CHUNK), T)
                for k in range(0, chunks):
                    at = k * CHUNK + c
                    in_row = at < classes
                    t = load_chunk(probabilities, t_rows, at, in_row, live, counts, 0.0, T, IN_ROWS)
                    masses += soft_of_chunk(t, weight, smoothing, classes, at, in_row, masses, True, T)
                mass = tl.sum(masses, axis=1)
        elif RESIDENT:
            in_row = c < classes
            mask = counts[:, None] & in_row[None, :]
            logits = load_logits(x, x_rows, c, in_row, live, counts, factor, cap, T, IN_ROWS)
            # Rows that do not count hold nothing but -inf: relative to 0, all that follows of them is 0.
            m = _finite(tl.max(logits, axis=1))
            relative = logits - m[:, None]
            e = exp_of_rounded(relative, ROUNDED)
            s = tl.sum(e, axis=1)
            if ENTROPY:
                average = tl.sum(moment(e, relative), axis=1) / s
            if argmax_ptr is not None:
                _, largest = _largest(logits, c, in_row)
            if SOFT:
                t = load_chunk(probabilities, t_rows, c, in_row, live, counts, 0.0, T, IN_ROWS)
                q = soft_of_chunk(t, weight, smoothing, classes, c, in_row, e, not HOT, T)
                mass = tl.sum(q, axis=1)
                cross = tl.sum(tl.where(mask, q * relative, 0.0), axis=1)
        else:
            running = tl.full((ROWS,), float("-inf"), T)
            m = hot * 0
            sums = tl.zeros((ROWS, CHUNK), T)
            masses = sums
            crosses = sums
            moments = sums
            if argmax_ptr is not None:
                best = running
                largest = tl.zeros((ROWS,), tl.int32)
            for k in range(0, chunks):
                at = k * CHUNK + c
                in_row = at < classes
                mask = counts[:, None] & in_row[None, :]
                logits = load_logits(x, x_rows, at, in_row, live, counts, factor, cap, T, IN_ROWS)
                if argmax_ptr is not None:
                    of_chunk, place = _largest(logits, at, in_row)
                    largest = tl.where(of_chunk > best, place, largest)
                    best = tl.maximum(best, of_chunk)
                larger = tl.maximum(running, tl.max(logits, axis=1))
                reference = _finite(larger)
                relative = logits - reference[:, None]
                # What was added up so far, relative to the larger maximum.
                shrunk = exp_of_rounded(running - reference, ROUNDED)[:, None]
                if ENTROPY:
                    moved = (moments + sums * (m - reference)[:, None]) * shrunk
                    moments = tl.where(shrunk != 0, moved, 0.0)
                    moments += moment(exp_of_rounded(relative, ROUNDED), relative)
                sums = sums * shrunk
                sums += exp_of_rounded(relative, ROUNDED)
                if SOFT:
                    t = load_chunk(probabilities, t_rows, at, in_row, live, counts, 0.0, T, IN_ROWS)
                    q = soft_of_chunk(t, weight, smoothing, classes, at, in_row, sums, not HOT, T)
                    crosses += masses * (m - reference)[:, None] + tl.where(mask, q * relative, 0.0)
                    masses += q
                running = larger
                m = reference
            s = tl.sum(sums, axis=1)
            if ENTROPY:
                average = tl.sum(moments, axis=1) / s
            if SOFT:
                mass = tl.sum(masses, axis=1)
                cross = tl.sum(crosses, axis=1)

        if not GIVEN and statistics_ptr is not None:
            tl.store(statistics_ptr + position, m, mask=live)
            tl.store(statistics_ptr + positions + position, tl.where(counts, s, 1.0), mask=live)
            if ENTROPY:
                place = statistics_ptr + 2 * positions + position
                tl.store(place, tl.where(counts, average, 0.0), mask=live)
        if argmax_ptr is not None:
            tl.store(argmax_ptr + position, tl.where(counts, largest, -1).to(tl.int64), mask=live)
        if loss_ptr is not None or losses[0] is not None:
            value = value_of_row(m, s, hot, x_y, mass, cross, HOT, SOFT)
            if TERMS:
                value += terms_of_row(m, s, average, z_loss, entropy, ENTROPY)
            value = tl.where(counts, value, 0.0)
            total += value
            if losses[0] is not None:
                place = losses[0] + offset_of(position, sizes, losses[1])
                tl.store(place, value.to(losses[0].dtype.element_ty), mask=live)

        if GIVEN and SMOOTHED and HOT:
            mass += common_mass
        if of_input[0] is not None or of_probabilities[0] is not None:
            g_rows = rows_of(of_input, sizes, position)
            gt_rows = rows_of(of_probabilities, sizes, position)
            of_numerator = tl.where(counts, (hot + mass) * slope / s, 0.0)
            if TERMS:
                of_terms = terms_slope(m, s, average, z_loss, entropy, ENTROPY) * slope
                if lse_gradient[0] is not None:
                    place = lse_gradient[0] + offset_of(position, sizes, lse_gradient[1])
                    of_terms += tl.load(place, mask=counts, other=0).to(T)
                of_terms = tl.where(counts, of_terms / s, 0.0)
                of_numerator += of_terms
            of_moment = tl.where(counts, entropy.to(T) * slope / s, 0.0) if ENTROPY else None
            if RESIDENT and not GIVEN:
                stored = live[:, None] & in_row[None, :]
                if of_input[0] is not None:
                    g = _of_numerators(e, relative, of_numerator, of_moment)
                    if SOFT:
                        g -= q * slope[:, None]
                    g = _of_given(g, logits, mask, factor, cap)
                    store_chunk(of_input, g_rows, c, stored, g)
                if of_probabilities[0] is not None:
                    of_t = (tl.log(s)[:, None] - relative) * (keep_soft * slope)[:, None]
                    w = load_weight(weight, c, in_row, T)
                    if w is not None:
                        of_t *= w
                    store_chunk(of_probabilities, gt_rows, c, stored, of_t)
                if SUMS_OTHERS:
                    others = tl.sum(tl.where(c[None, :] == y[:, None], 0.0, e), axis=1)
            else:
                if SUMS_OTHERS:
                    sums = tl.zeros((ROWS, CHUNK), T)
                for k in range(0, chunks):
                    at = (chunks - 1 - k) * CHUNK + c
                    in_row = at < classes
                    mask = counts[:, None] & in_row[None, :]
                    stored = live[:, None] & in_row[None, :]
                    logits = load_logits(x, x_rows, at, in_row, live, counts, factor, cap, T, IN_ROWS)
                    relative = logits - m[:, None]
                    if of_probabilities[0] is not None:
                        of_t = (tl.log(s)[:, None] - relative) * (keep_soft * slope)[:, None]
                        w = load_weight(weight, at, in_row, T)
                        if w is not None:
                            of_t *= w
                    if SOFT:
                        t = load_chunk(probabilities, t_rows, at, in_row, live, counts, 0.0, T, IN_ROWS)
                        q = soft_of_chunk(t, weight, smoothing, classes, at, in_row, relative, not HOT, T)
                    if of_probabilities[0] is not None:
                        store_chunk(of_probabilities, gt_rows, at, stored, of_t)
                    if of_input[0] is not None:
                        e = exp_of_rounded(relative, ROUNDED)
                        if SUMS_OTHERS:
                            sums += tl.where(at[None, :] == y[:, None], 0.0, e)
                        g = _of_numerators(e, relative, of_numerator, of_moment)
                        if SOFT:
                            g -= q * slope[:, None]
                        g = _of_given(g, logits, mask, factor, cap)
                        store_chunk(of_input, g_rows, at, stored, g)
                if SUMS_OTHERS:
                    others = tl.sum(sums, axis=1)
            if HOT:
                # One element of those stored above, by whichever thread: all must be there before.
                tl.debug_barrier()
                e_y = exp_of_rounded(x_y - m, ROUNDED)
                if not SUMS_OTHERS:
                    others = s - e_y
                q_y = w_y * (smoothing / classes).to(T)
                g_y = gradient_at_hot(e_y, others, s, hot, mass, q_y, SOFT) * slope
                if TERMS:
                    g_y += e_y * of_terms
                    if ENTROPY:
                        g_y += moment(e_y, x_y - m) * of_moment
                    g_y *= slope_of_logit(x_y, factor, cap)
                tl.store(g_rows + y * of_input[1], g_y.to(of_input[0].dtype.element_ty), mask=counts)
    if loss_ptr is not None:
        finish(tl.sum(total), divisor, loss_ptr, partials_ptr, arrived_ptr)

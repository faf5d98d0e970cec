"""Chunks of rows of classes: from memory to the numbers of a softmax, and back."""

import triton
import triton.language as tl

from fused_losses.triton_kernels.formulas.cross_entropy import scaled_logit, soft_target
from fused_losses.triton_kernels.iteration import offset_of


@triton.jit
def rows_of(tensor, sizes, position):
    """Where the rows of some positions begin."""
    if tensor[0] is None:
        return
    else:
        return tensor[0] + offset_of(position, sizes, tensor[2])


@triton.jit
def load_chunk(tensor, rows, c, in_row, live, counts, other, T: tl.constexpr, IN_ROWS: tl.constexpr):
    """Classes c of rows; of those that do not count, nothing but `other`."""
    if tensor[0] is None:
        return
    else:
        places = rows[:, None] + (c.to(tl.int64) * tensor[1])[None, :]
        if IN_ROWS:
            return tl.load(places, mask=counts[:, None] & in_row[None, :], other=other).to(T)
        else:
            # Neighbours are of different rows, and read together, whether they count or not.
            chunk = tl.load(places, mask=live[:, None] & in_row[None, :], other=other).to(T)
            return tl.where(counts[:, None], chunk, other)


@triton.jit
def store_chunk(tensor, rows, c, mask, value):
    """Classes c of rows, in the tensor's dtype."""
    tl.store(
        rows[:, None] + (c.to(tl.int64) * tensor[1])[None, :], value.to(tensor[0].dtype.element_ty), mask=mask
    )


@triton.jit
def load_logits(x, rows, c, in_row, live, counts, logit_scale, cap, T: tl.constexpr, IN_ROWS: tl.constexpr):
    """-inf beyond the row's end, and in rows that do not count."""
    logits = load_chunk(x, rows, c, in_row, live, counts, float("-inf"), T, IN_ROWS)
    if logit_scale is None:
        return logits
    else:
        x_c = scaled_logit(logits, logit_scale, cap)
        return tl.where(counts[:, None] & in_row[None, :], x_c, float("-inf"))


@triton.jit
def load_weight(weight, c, in_row, T: tl.constexpr):
    """Of classes c, for every row."""
    if weight[0] is None:
        return
    else:
        return tl.load(weight[0] + c.to(tl.int64) * weight[1], mask=in_row, other=0).to(T)[None, :]


@triton.jit
def soft_of_chunk(t, weight, smoothing, classes, c, in_row, x, PROBABILITIES: tl.constexpr, T: tl.constexpr):
    """Soft targets of a chunk, 0 beyond the row's end."""
    q = soft_target(t, load_weight(weight, c, in_row, T), smoothing, classes, x, PROBABILITIES)
    return tl.where(in_row[None, :], q, 0.0)


@triton.jit
def mass_of_smoothing(weight, smoothing, classes, chunks, CHUNK: tl.constexpr, T: tl.constexpr):
    """What smoothing adds up to, without probabilities: the same for all rows."""
    total = tl.zeros((CHUNK,), T)
    if weight[0] is None:
        return smoothing.to(T)
    else:
        for k in range(0, chunks):
            c = k * CHUNK + tl.arange(0, CHUNK)
            total += tl.load(weight[0] + c.to(tl.int64) * weight[1], mask=c < classes, other=0).to(T)
        return tl.sum(total) * (smoothing / classes).to(T)

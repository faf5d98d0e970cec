"""When a result is as accurate as eager torch's: the one rule that all tests of values share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

# Twice, because two roundings of one exact value may lie on both sides of it; a few units, because eager
# may happen to round to the exact value. Nothing here grows with the number of terms of a reduction.
EAGER_FACTOR = 2
SLACK_ULP = 4


def ulp(reference: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance between neighbours in `dtype` at the float64 values of `reference`."""
    info = torch.finfo(dtype)
    # Subnormals are as far apart as the smallest normal numbers.
    exponent = torch.frexp(reference.abs().clamp_min(info.smallest_normal)).exponent
    # frexp counts from [0.5, 1), eps from [1, 2): hence the half.
    return torch.ldexp(torch.full_like(reference, info.eps / 2), exponent)


def assert_as_accurate(
    ours: Tensor,
    eager: Tensor,
    reference64: Tensor,
    *,
    dtype: torch.dtype,
    name: str = "result",
    terms: float = 0.0,
) -> None:
    """Checks `ours` against `eager` (both in `dtype`) by their errors from the float64 `reference64`.

    `terms` is the size of the terms that the result is the difference of, where they can nearly cancel: no
    one who rounds them can know their difference to its own ulp. The log of a softmax's sum, at least 1, is
    such a term of a loss.

    Every element of ours may be off by twice the largest error that eager makes in this tensor, plus 4 units
    in the last place of that element. NaN and infinity must be where eager has them; only where eager
    overflows in float16, although the reference fits, ours may be that finite value instead.
    """
    assert ours.dtype == eager.dtype == dtype, f"{name}: {ours.dtype}, eager has {eager.dtype}, not {dtype}"
    assert ours.shape == eager.shape, f"{name}: {tuple(ours.shape)}, eager has {tuple(eager.shape)}"
    assert reference64.dtype == torch.float64 and reference64.shape == eager.shape
    ours, eager, reference = ours.detach().double(), eager.detach().double(), reference64.detach()

    # What eager loses on its way through float16, ours may know: the rounded reference.
    lost = eager.isnan() & ~reference.isnan() & (dtype is torch.float16) & (ours == reference.to(dtype))
    nan = eager.isnan() & ~lost
    assert torch.equal(ours.isnan(), nan), f"{name}: NaN elsewhere: {ours} instead of {eager}"
    overflowed = eager.isinf() & reference.to(dtype).isfinite() & (dtype is torch.float16)
    # A finite value is judged below, with all others.
    rescued = (overflowed & ours.isfinite()) | lost
    same = (ours == eager) | (ours.isfinite() & eager.isfinite()) | ours.isnan() | rescued
    assert same.all(), f"{name}: infinity elsewhere: {ours} instead of {eager}"

    # Where float64 itself has no finite value, that eager has one is a matter of its formula: to be the same.
    undefined = ours.isfinite() & ~reference.isfinite() & ~lost
    assert torch.equal(ours[undefined], eager[undefined]), f"{name}: {ours} instead of {eager}"

    # A finite reference that overflows in `dtype` counts as what it is in float64, so a value next to
    # infinity is judged by its error, too.
    judged = ours.isfinite() & reference.isfinite()
    eager_errors = (eager - reference).abs()[judged & eager.isfinite()]
    eager_error = eager_errors.max() if eager_errors.numel() else torch.zeros((), dtype=torch.float64)
    error = (ours - reference).abs()[judged]
    allowed = EAGER_FACTOR * eager_error + SLACK_ULP * ulp(reference[judged].abs().clamp_min(terms), dtype)
    worst = int((error / allowed).argmax()) if error.numel() else 0
    assert (error <= allowed).all(), (
        f"{name} in {dtype}: error {error[worst]:.3e} at {reference[judged][worst]:.6e}, allowed "
        f"{allowed[worst]:.3e} (eager's largest is {eager_error:.3e})"
    )


def fresh(tree):
    """The same values as new leaves, laid out as they are."""
    return tree_map(
        lambda x: x.detach().requires_grad_(x.requires_grad) if isinstance(x, torch.Tensor) else x, tree
    )


def widened(tree):
    """The same values in float64, as new leaves."""

    def widen(x):
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            return x
        return x.detach().double().requires_grad_(x.requires_grad)

    return tree_map(widen, tree)


def differentiable(tree):
    return [x for x in tree_flatten(tree)[0] if isinstance(x, torch.Tensor) and x.requires_grad]


def loss_and_gradients(function, sample, upstream):
    """[loss, gradients...], or without `upstream`, the loss as it is computed without autograd."""
    args, kwargs = sample
    if upstream is None:
        with torch.no_grad():
            return [function(*args, **kwargs)]
    loss = function(*args, **kwargs)
    return [loss.detach(), *torch.autograd.grad(loss, differentiable(sample), upstream.to(loss.dtype))]


def references(name, eager, sample, upstream):
    """What a result is judged by: torch in float64, and for float64, something better still."""
    if differentiable(sample)[0].dtype is not torch.float64:
        return loss_and_gradients(eager, widened(sample), upstream)
    exact = results_in_extended_precision(name, *sample, upstream)
    # Were it wrong, eager would seem so, and the rule lenient.
    results = loss_and_gradients(eager, fresh(sample), upstream)
    torch.testing.assert_close(exact, results, rtol=1e-11, atol=1e-12, equal_nan=True)
    return exact


def assert_same_results(name, mine, eager, draws):
    """Loss and gradients of `mine` are as accurate as those of `eager`, for samples that differ in values.

    They are judged together: of one loss, eager's error would be a single number, and 0 now and then.
    """
    (expected,) = loss_and_gradients(eager, draws[0], None)
    factors = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(expected.dtype)
    # 1 is what loss.backward() passes and the fused gradient is made for; anything else must scale it.
    for upstream in (None, torch.ones_like(expected), factors):
        of_mine, of_eager, of_reference = (
            [torch.stack(results) for results in zip(*each, strict=True)]
            for each in (
                [loss_and_gradients(mine, fresh(sample), upstream) for sample in draws],
                [loss_and_gradients(eager, fresh(sample), upstream) for sample in draws],
                [references(name, eager, sample, upstream) for sample in draws],
            )
        )
        for i, (result, theirs, reference) in enumerate(zip(of_mine, of_eager, of_reference, strict=True)):
            label = f"{describe(draws[0])}, {f'gradient {i}' if i else 'loss'}"
            assert_as_accurate(result, theirs, reference, dtype=theirs.dtype, name=label)


def describe(sample):
    """A sample in a line, for messages."""
    return tree_map(
        lambda x: f"{x.dtype}{list(x.shape)}".removeprefix("torch.") if isinstance(x, torch.Tensor) else x,
        sample,
    )


def results_in_extended_precision(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], upstream: Tensor | None
) -> list[Tensor]:
    """The loss and, given `upstream`, the gradients of operands that require it, rounded to float64 once.

    By numpy's long double and by formulas written out here: what float64 results are judged against, of
    which torch has nothing better than its own. Takes the arguments of the function `name` of torch.
    """
    assert np.finfo(np.longdouble).eps < torch.finfo(torch.float64).eps / 256, "no such type on this machine"
    input, target = args
    options = {key: _long(value) if isinstance(value, Tensor) else value for key, value in kwargs.items()}
    reduction = options.pop("reduction", "mean")
    x, t = _long(input), _long(target) if target.is_floating_point() else target.numpy()
    with np.errstate(all="ignore"):
        run = _softmax_family if name in ("cross_entropy", "nll_loss") else _pointwise_family
        losses, divisor, gradients = run(name, x, t, **options)
        loss = losses if reduction == "none" else losses.sum() / (divisor if reduction == "mean" else 1)
        results = [loss]
        if upstream is not None:
            scale = _long(upstream) / (divisor if reduction == "mean" else 1)
            for operand, gradient in zip(args, gradients, strict=False):  # class indices have none
                if operand.requires_grad:
                    results.append(_sum_to(gradient(scale), operand.shape))
    return [torch.from_numpy(np.asarray(result).astype(np.float64)) for result in results]


def _long(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy().astype(np.longdouble)


def _sum_to(gradient: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    gradient = gradient.sum(axis=tuple(range(gradient.ndim - len(shape))))
    ones = tuple(i for i, size in enumerate(shape) if size == 1)
    return gradient.sum(axis=ones, keepdims=True)


def _pointwise_family(name, x, t, weight=None, pos_weight=None):
    if name == "mse_loss":
        value, of_x, of_t = (x - t) ** 2, 2 * (x - t), 2 * (t - x)
    elif name == "l1_loss":
        value, of_x, of_t = abs(x - t), np.sign(x - t), np.sign(t - x)
    elif name == "binary_cross_entropy":
        log_x, log_rest = np.log(x), np.log1p(-x)
        value = -t * np.maximum(log_x, -100) - (1 - t) * np.maximum(log_rest, -100)
        of_x, of_t = (x - t) / np.maximum(x * (1 - x), np.longdouble(1e-12)), log_rest - log_x
    else:
        factor = np.longdouble(1) if pos_weight is None else pos_weight
        log_sigmoid, log_rest = -np.logaddexp(0, -x), -np.logaddexp(0, x)
        value = -factor * t * log_sigmoid - (1 - t) * log_rest
        of_x = (1 - t) * np.exp(log_sigmoid) - factor * t * np.exp(log_rest)
        # As log(1 - s) - log(s) = -x, of which nothing cancels.
        of_t = (1 - factor) * log_sigmoid - x
    w = np.longdouble(1) if weight is None else weight
    over_weights = weight is not None and name in ("mse_loss", "l1_loss")
    divisor = np.broadcast_to(w, value.shape).sum() if over_weights else value.size
    return w * value, divisor, (lambda scale: scale * w * of_x, lambda scale: scale * w * of_t)


def _softmax_family(name, x, t, weight=None, ignore_index=-100, label_smoothing=0.0):
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

    def spread(scale):
        return scale if np.ndim(scale) == 0 else np.expand_dims(scale, axis)

    if name == "nll_loss":
        return -(target * x).sum(axis), divisor, [lambda scale: np.where(kept, -target * spread(scale), 0)]
    shifted = x - x.max(axis, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis, keepdims=True))
    mass = target.sum(axis, keepdims=True)
    # Not 0 * scale, which is NaN if no row is kept.
    gradients = [lambda scale: np.where(kept, spread(scale) * (mass * np.exp(log_p) - target), 0)]
    if t.dtype == np.longdouble:
        gradients.append(lambda scale: spread(scale) * -(1 - smoothing) * w * log_p)
    # Where no class takes part, what it would have said does not matter, though it be infinite; but a
    # probability of 0 times an infinite logarithm is NaN, in torch too.
    product = target * log_p if t.dtype == np.longdouble else np.where(target == 0, 0, target * log_p)
    return -product.sum(axis), divisor, gradients

"""When a result is as accurate as eager torch's: the one rule that all tests of values share."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fused_losses.bench.tolerance import allowance, ulp
from fused_losses.losses.twins import twin_of
from fused_losses.registry import LOSSES
from kit import composed, older_torch
from kit.exact import results_in_extended_precision


def assert_as_accurate(
    ours: Tensor,
    eager: Tensor,
    reference64: Tensor,
    *,
    dtype: torch.dtype,
    name: str = "result",
    terms: Tensor | float = 0.0,
    eager_overflows: bool = False,
) -> None:
    """Checks `ours` against `eager` (both in `dtype`) by their errors from the float64 `reference64`.

    `terms` is the size of the terms that each number is the sum of, where they can nearly cancel: no one who
    rounds them can know their sum to its own ulp.

    Every element of ours may be off by twice the largest error that eager makes in this tensor, plus 4 units
    in the last place of that element. NaN and infinity must be where eager has them; only where eager
    overflows in float16, although the reference fits, ours may be that finite value instead. With
    `eager_overflows`, for losses of which this is known in every dtype, it must be: eager counts as the
    rounded reference there.
    """
    assert ours.dtype == eager.dtype == dtype, f"{name}: {ours.dtype}, eager has {eager.dtype}, not {dtype}"
    assert ours.shape == eager.shape, f"{name}: {tuple(ours.shape)}, eager has {tuple(eager.shape)}"
    assert reference64.dtype == torch.float64 and reference64.shape == eager.shape
    ours, eager, reference = ours.detach().double(), eager.detach().double(), reference64.detach()
    if eager_overflows:
        eager = torch.where(eager.isfinite(), eager, reference.to(dtype).double())

    error, eager_error = (ours - reference).abs(), (eager - reference).abs()
    size = torch.maximum(reference.abs(), torch.as_tensor(terms, dtype=torch.float64))
    if not (ours.isfinite() & eager.isfinite() & reference.isfinite()).all():
        _assert_same_beyond_numbers(ours, eager, reference, dtype, name)
        # A finite reference that overflows in `dtype` counts as what it is in float64, so a value next to
        # infinity is judged by its error, too.
        judged = ours.isfinite() & reference.isfinite()
        eager_error = eager_error[judged & eager.isfinite()]
        error, size, reference = error[judged], size[judged], reference[judged]
    largest = eager_error.max() if eager_error.numel() else torch.zeros((), dtype=torch.float64)
    allowed = allowance(largest, ulp(size, dtype))
    if not (error <= allowed).all():
        worst = int((error / allowed).argmax())
        error, reference, allowed = (x.flatten()[worst] for x in (error, reference, allowed))
        raise AssertionError(
            f"{name} in {dtype}: error {error:.3e} at {reference:.6e}, allowed {allowed:.3e} "
            f"(eager's largest is {largest:.3e})"
        )


def _assert_same_beyond_numbers(
    ours: Tensor, eager: Tensor, reference: Tensor, dtype: torch.dtype, name: str
) -> None:
    """NaN and infinity are where eager has them, but for what it loses in float16."""
    # What eager loses on its way through float16, ours may know: a number, judged by its error as all others,
    # or the infinity that the reference is.
    known = ours.isfinite() | (ours == reference.to(dtype))
    lost = eager.isnan() & ~reference.isnan() & (dtype is torch.float16) & known
    nan = eager.isnan() & ~lost
    assert torch.equal(ours.isnan(), nan), f"{name}: NaN elsewhere: {ours} instead of {eager}"
    overflowed = eager.isinf() & reference.to(dtype).isfinite() & (dtype is torch.float16)
    # A finite value is judged by its error, with all others.
    rescued = (overflowed & ours.isfinite()) | lost
    same = (ours == eager) | (ours.isfinite() & eager.isfinite()) | ours.isnan() | rescued
    assert same.all(), f"{name}: infinity elsewhere: {ours} instead of {eager}"

    # Where float64 itself has no finite value, that eager has one is a matter of its formula: to be the same.
    undefined = ours.isfinite() & ~reference.isfinite() & ~lost
    assert torch.equal(ours[undefined], eager[undefined]), f"{name}: {ours} instead of {eager}"


def roundings(dtype: torch.dtype) -> float:
    """By how much two ways of ours may differ in results of size 1, where there is no eager one.

    16 bits are rounded at the end only, and eps is the distance of neighbours. More bits differ by the order
    of sums of up to 131 numbers: by about the root of that, and 16 is the next power of 2.
    """
    return (1 if dtype.itemsize == 2 else 16) * torch.finfo(dtype).eps


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


IN_FLOAT32 = ("multi_margin_loss", "multilabel_margin_loss")
"""Torch's CPU has no kernels of these for bfloat16 and float16."""

OVERFLOWS = ("soft_margin_loss",)
"""Torch's log(1 + e^z) is infinite, and the derivative NaN, where e^z is: from z = 88 on in float32."""


def eager_of(name, function=None):
    """Torch's function (or `function`, the module as one); of IN_FLOAT32, on operands widened and rounded.

    What cross_entropy has beyond torch is composed of torch's operators; so is what older versions of torch
    computed otherwise.
    """
    function = older_torch.LOSSES.get(name, function) or (
        composed.cross_entropy if name == "cross_entropy" else twin_of(name)
    )
    if name not in IN_FLOAT32:
        return function

    def eager(*args, **kwargs):
        dtype = args[0].dtype
        if dtype in (torch.float32, torch.float64):
            return function(*args, **kwargs)

        def widen(x):
            return x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x

        args, kwargs = tree_map(widen, (args, kwargs))
        return function(*args, **kwargs).to(dtype)

    return eager


def operands_of(name, args):
    """As new leaves, of which those that torch differentiates require grad."""
    bits = LOSSES[name].differentiable

    def leaf(i, x):
        continuous = x.is_floating_point() or x.is_complex()
        return x.detach().requires_grad_(continuous and bool(bits >> i & 1))

    return tuple(leaf(i, x) if isinstance(x, torch.Tensor) else x for i, x in enumerate(args))


def differentiable(sample):
    return [x for x in sample[0] if isinstance(x, torch.Tensor) and x.requires_grad]


def loss_and_gradients(function, sample, upstream):
    """[loss, gradients...], or without `upstream`, the loss as it is computed without autograd."""
    args, kwargs = sample
    if upstream is None:
        with torch.no_grad():
            return [function(*args, **kwargs)]
    loss = function(*args, **kwargs)
    return [loss.detach(), *torch.autograd.grad(loss, differentiable(sample), upstream.to(loss.dtype))]


def references(name, eager, sample, upstream):
    """What results are judged by: numbers better than torch's in float64, and the sizes of their terms."""
    wide = widened(sample)
    in_float64 = differentiable(sample)[0].dtype is torch.float64
    exact, sizes = results_in_extended_precision(name, *wide, upstream, in_float64)
    results = loss_and_gradients(eager, wide, upstream)
    if name in OVERFLOWS:
        results = [torch.where(x.isfinite(), x, y) for x, y in zip(results, exact, strict=True)]
    # Were it wrong, eager would seem so, and the rule lenient.
    torch.testing.assert_close(exact, results, rtol=1e-11, atol=1e-12, equal_nan=True)
    return exact, sizes


def assert_all_as_accurate(name, ours, eager, exact, sizes, label):
    """The rule for the loss `name`: for it and its gradients."""
    parts = ["loss", *(f"gradient {i}" for i in range(len(ours) - 1))]
    for part, *each in zip(parts, ours, eager, exact, sizes, strict=True):
        mine, theirs, reference, size = each
        assert_as_accurate(
            mine,
            theirs,
            reference,
            dtype=theirs.dtype,
            name=f"{part}, {label}",
            terms=size,
            eager_overflows=name in OVERFLOWS,
        )


def together(results):
    """Of samples that differ in values, each a list of loss and gradients: one list, stacked."""
    return [torch.stack(each) for each in zip(*results, strict=True)]


def assert_same_results(name, eager, draws, calls):
    """Loss and gradients of each call are as accurate as those of `eager`.

    `draws` are samples that differ in values. They are judged together: of one loss, eager's error would be a
    single number, and 0 now and then. `calls` are functions by their labels, each with the samples that it
    takes: those of `draws`, or the same values lying otherwise in memory.
    """

    def check(upstream, theirs, exact, sizes):
        for label, (mine, samples) in calls.items():
            ours = together(loss_and_gradients(mine, fresh(sample), upstream) for sample in samples)
            assert_all_as_accurate(name, ours, theirs, exact, sizes, f"{describe(draws[0])}, {label}")

    (expected,) = loss_and_gradients(eager, draws[0], None)
    factors = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1)).to(expected.dtype)
    # 1 is what loss.backward() passes and the fused gradient is made for; anything else must scale it.
    for upstream in (torch.ones_like(expected), factors):
        theirs = together(loss_and_gradients(eager, fresh(sample), upstream) for sample in draws)
        pairs = (references(name, eager, sample, upstream) for sample in draws)
        exact, sizes = map(together, zip(*pairs, strict=True))
        check(upstream, theirs, exact, sizes)
    # The loss as it is computed without autograd is judged by the same references.
    check(None, together(loss_and_gradients(eager, sample, None) for sample in draws), exact[:1], sizes[:1])


def describe(sample):
    """A sample in a line, for messages."""
    return tree_map(
        lambda x: f"{x.dtype}{list(x.shape)}".removeprefix("torch.") if isinstance(x, torch.Tensor) else x,
        sample,
    )

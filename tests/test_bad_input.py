"""Calls that torch refuses: the same exception, and nothing read or written outside the operands.

`make test-sanitize` runs this file, among others, with the library built under AddressSanitizer.
"""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F

import fused_losses.functional as L

LOGITS = torch.randn(4, 3)


def outcome(function, arguments, options):
    """The exception's type, or the value."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return function(*arguments, **options)
        except Exception as error:
            return type(error)


def same(name: str, *arguments, **options) -> None:
    ours, theirs = (outcome(getattr(module, name), arguments, options) for module in (L, F))
    if isinstance(theirs, type):
        assert ours is theirs, f"{ours} instead of {theirs}"
    else:
        torch.testing.assert_close(ours, theirs, equal_nan=True)


@pytest.mark.parametrize("label", (3, -1, 2**31, -(2**40), 2**62))
@pytest.mark.parametrize("name", ("cross_entropy", "nll_loss"))
@pytest.mark.parametrize("shape", ((4, 3), (4, 3, 5), (4, 300), (40000, 3)))
@pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
def test_class_out_of_range(name, label, shape, reduction):
    if label == 3:
        label = shape[1]
    logits = torch.randn(shape)
    target = torch.zeros(shape[:1] + shape[2:], dtype=torch.long)
    target.view(-1)[-1] = label
    for backward in ("fused", "recompute"):
        with pytest.raises(IndexError, match=f"Target {label} is out of bounds"):
            getattr(L, name)(logits.clone().requires_grad_(), target, reduction=reduction, backward=backward)
    with pytest.raises(IndexError):
        getattr(F, name)(logits, target, reduction=reduction)


def test_an_error_leaves_the_input_alone_inplace():
    before = torch.rand(4, 3)
    input = before.clone().requires_grad_() * 1
    with pytest.raises(IndexError):
        L.cross_entropy(input, torch.tensor([0, 1, 2, 3]), backward="inplace")
    assert torch.equal(input, before)
    before[3, 2] = 1.5
    input = before.clone().requires_grad_() * 1
    with pytest.raises(RuntimeError, match="between 0 and 1"):
        L.binary_cross_entropy(input, torch.rand(4, 3), backward="inplace")
    assert torch.equal(input, before)


def test_operators_refuse_statistics_of_something_else():
    operators = torch.ops.fused_losses
    one, labels = torch.ones(()), torch.tensor([0, 1, 2, 0])
    with pytest.raises(RuntimeError, match="not the statistics"):
        operators.cross_entropy_backward(one, LOGITS, labels, None, torch.ones(2, 3), -100, 0.0, 1, 1)


def test_ignored_label_may_be_any_number():
    for ignored in (-100, -1, 3, 2**40):
        target = torch.tensor([0, ignored, 2, 1])
        same("cross_entropy", LOGITS, target, ignore_index=ignored)
        same("nll_loss", LOGITS, target, ignore_index=ignored)
    same("cross_entropy", LOGITS, torch.tensor([0, 255, 2, 1], dtype=torch.uint8), ignore_index=255)


@pytest.mark.parametrize("name", ("cross_entropy", "nll_loss"))
def test_shapes_and_dtypes_of_class_losses(name):
    labels = torch.tensor([0, 1, 2, 0])
    for target in (
        labels[:3],
        labels.view(4, 1),
        labels.view(2, 2),
        labels.int(),
        labels.short(),
        labels.bool(),
        labels.to(torch.uint8),
        torch.tensor(0),
        labels[:0],
        torch.rand(4, 2),
        torch.rand(3),
    ):
        same(name, LOGITS, target)
    same(name, torch.randn(()), torch.tensor(0))
    same(name, torch.randn(3), torch.tensor(1))
    same(name, torch.randn(3), torch.tensor([1]))
    same(name, torch.randn(0), torch.tensor(0))
    same(name, torch.randn(4, 0), labels)
    same(name, LOGITS.long(), labels)
    same(name, LOGITS.cfloat(), labels)
    for weight in (
        torch.rand(2),
        torch.rand(1, 3),
        torch.rand(3).double(),
        torch.rand(()),
        torch.rand(3).int(),
    ):
        same(name, LOGITS, labels, weight=weight)
    same(name, LOGITS, labels, reduction="average")


def test_options_of_cross_entropy():
    labels = torch.tensor([0, 1, 2, 0])
    for smoothing in (-0.1, 1.0, 1.1):
        same("cross_entropy", LOGITS, labels, label_smoothing=smoothing)
    same("cross_entropy", LOGITS, torch.rand(4, 3), ignore_index=1)
    same("cross_entropy", LOGITS, torch.rand(4, 3).double())
    same("cross_entropy", LOGITS, torch.rand(4, 3).bfloat16())


@pytest.mark.parametrize("name", ("cross_entropy", "nll_loss"))
@pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
def test_nothing_to_average(name, reduction):
    """Empty batches, and batches of ignored rows: torch's values, and gradients of exactly zero."""
    for shape in ((0, 3), (0, 3, 5), (2, 3, 0)):
        same(
            name,
            torch.randn(shape),
            torch.zeros(shape[:1] + shape[2:], dtype=torch.long),
            reduction=reduction,
        )
    ignored = torch.full((4,), -100)
    same(name, LOGITS, ignored, reduction=reduction)
    options = ({}, {"weight": torch.rand(3)}) + (
        ({"label_smoothing": 0.1},) if name == "cross_entropy" else ()
    )
    for extra in options:
        logits = LOGITS.clone().requires_grad_()
        getattr(L, name)(logits, ignored, reduction=reduction, **extra).sum().backward()
        assert torch.equal(logits.grad, torch.zeros(4, 3))


def test_ignored_rows_stay_zero_whatever_they_hold():
    for shape in ((4, 3), (4, 100), (4, 3, 5)):
        logits = torch.randn(shape)
        logits[1] = torch.nan
        logits[2] = torch.inf
        target = torch.zeros(shape[:1] + shape[2:], dtype=torch.long)
        target[1:3] = -100
        logits.requires_grad_()
        loss = L.cross_entropy(logits, target)
        loss.backward()
        assert loss.isfinite() and torch.equal(logits.grad[1:3], torch.zeros_like(logits.grad[1:3]))


@pytest.mark.parametrize(
    "name", ("binary_cross_entropy", "binary_cross_entropy_with_logits", "mse_loss", "l1_loss")
)
def test_elementwise_losses(name):
    x, t = torch.rand(4, 3), torch.rand(4, 3)
    for target in (
        t[:3],
        t[:, :1],
        t.view(3, 4),
        t[0],
        t.double(),
        t.bfloat16(),
        t.long(),
        t.bool(),
        t.cfloat(),
    ):
        same(name, x, target)
    same(name, x.long(), t.long())
    same(name, x.cfloat(), t.cfloat())
    same(name, x, t, reduction="average")
    for weight in (torch.rand(4, 3), torch.rand(3), torch.rand(2), torch.rand(5, 4, 3), torch.rand(4, 1)):
        same(name, x, t, weight=weight)
    same(name, x, t, weight=torch.rand(4, 3).double())
    same(name, x, t, weight=torch.rand(4, 3, requires_grad=True))
    for reduction in ("mean", "sum", "none"):
        same(name, x[:0], t[:0], reduction=reduction)


@pytest.mark.parametrize("bad", (-0.1, 1.1, torch.nan, torch.inf))
def test_probabilities_out_of_range(bad):
    for count in (1, 40000):
        x = torch.full((count,), 0.5)
        x[-1] = bad
        same("binary_cross_entropy", x, torch.rand(count))
        with pytest.raises(RuntimeError, match="between 0 and 1"):
            L.binary_cross_entropy(x.requires_grad_(), torch.rand(count))


def test_pos_weight():
    x, t = torch.randn(4, 3), torch.rand(4, 3)
    for weight in (torch.rand(3), torch.rand(2), torch.rand(4, 1), torch.rand(2, 4, 3), torch.rand(())):
        same("binary_cross_entropy_with_logits", x, t, pos_weight=weight)
    same("binary_cross_entropy_with_logits", x, t, pos_weight=torch.rand(3, requires_grad=True))


def test_legacy_arguments_warn_and_work():
    target = torch.tensor([0, 1, 2, 0])
    for options in ({"size_average": False}, {"reduce": False}, {"size_average": True, "reduce": True}):
        with pytest.warns(UserWarning, match="size_average and reduce args will be deprecated"):
            ours = L.cross_entropy(LOGITS, target, **options)
        torch.testing.assert_close(ours, F.cross_entropy(LOGITS, target, **options))


def test_broadcasting_warns_at_the_caller():
    with pytest.warns(UserWarning, match="Using a target size") as caught:
        L.mse_loss(torch.rand(4, 3), torch.rand(3))
    assert caught[0].filename == __file__


def test_backward_must_be_known():
    with pytest.raises(ValueError, match="backward must be"):
        L.cross_entropy(LOGITS, torch.zeros(4, dtype=torch.long), backward="fast")

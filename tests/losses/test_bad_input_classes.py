"""Class indices, their shapes and dtypes: what torch refuses, we refuse, and nothing outside is read."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from kit.refusals import same

import fused_losses.functional as L

LOGITS = torch.randn(4, 3)


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
    more = {"z_loss": 1e-4, "softcap": 30.0, "return_argmax": True} if name == "cross_entropy" else {}
    with pytest.raises(IndexError, match=f"Target {label} is out of bounds"):
        getattr(L, name)(logits, target, reduction=reduction, **more)
    for backward in ("fused", "recompute"):
        with pytest.raises(IndexError, match=f"Target {label} is out of bounds"):
            getattr(L, name)(logits.clone().requires_grad_(), target, reduction=reduction, backward=backward)
    with pytest.raises(IndexError):
        getattr(F, name)(logits, target, reduction=reduction)


def test_operators_refuse_statistics_of_something_else():
    operators = torch.ops.fused_losses
    one, labels = torch.ones(()), torch.tensor([0, 1, 2, 0])
    with pytest.raises(RuntimeError, match="extra must be the statistics of this input"):
        operators.cross_entropy_backward(
            one, LOGITS, labels, None, torch.ones(2, 3), -100, 0.0, [], None, None, 1, 1
        )


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


@pytest.mark.parametrize("name", ("multi_margin_loss", "multilabel_margin_loss"))
@pytest.mark.parametrize("label", (3, -2, 2**31, -(2**40), 2**62))
def test_class_of_margins_out_of_range(name, label):
    for shape in ((4, 3), (4, 300), (40000, 3)):
        bad = shape[1] if label == 3 else label
        scores = torch.randn(shape)
        target = torch.zeros(shape if name == "multilabel_margin_loss" else shape[:1], dtype=torch.long)
        target.view(-1)[-1] = bad
        before = scores.clone()
        for backward in ("fused", "recompute", "inplace"):
            with pytest.raises(RuntimeError) as ours:
                getattr(L, name)(scores.requires_grad_() * 1, target, backward=backward)
        with pytest.raises(RuntimeError) as theirs:
            getattr(F, name)(scores, target)
        assert type(ours.value) is type(theirs.value)
        assert torch.equal(scores, before)


def test_shapes_and_dtypes_of_class_margins():
    labels = torch.tensor([0, 1, 2, 0])
    for target in (labels[:3], labels.view(4, 1), labels.view(2, 2), labels.int(), labels.float(), labels[0]):
        same("multi_margin_loss", LOGITS, target)
    for target in (torch.tensor(1), torch.tensor([1]), torch.tensor([[1]]), labels):
        for reduction in ("mean", "none"):
            same("multi_margin_loss", LOGITS[0], target, reduction=reduction)
    for weight in (torch.rand(3), torch.rand(2), torch.rand(1, 3), torch.rand(3).double(), torch.rand(())):
        same("multi_margin_loss", LOGITS, labels, weight=weight)
    for options in (
        {"p": 3},
        {"p": 0},
        {"p": 2.0},
        {"margin": -1.0},
        {"margin": 0},
        {"reduction": "average"},
    ):
        same("multi_margin_loss", LOGITS, labels, **options)
    lists = torch.tensor([[0, -1, 1], [1, 2, -1], [-1, 0, 0], [2, 1, 0]])
    for target in (lists, lists[:3], lists[:, :2], lists[0], lists.int(), lists.float(), lists[None]):
        same("multilabel_margin_loss", LOGITS, target)
    same("multilabel_margin_loss", LOGITS, lists, reduction="average")
    for reduction in ("mean", "sum", "none"):
        same("multilabel_margin_loss", LOGITS[0], lists[0], reduction=reduction)
    for name, target in (("multi_margin_loss", labels), ("multilabel_margin_loss", lists)):
        same(name, LOGITS[:, :0], target[..., :0] if target.dim() == 2 else target, reduction="none")
        same(name, LOGITS[None], target)
        same(name, LOGITS.long(), target)
        # Of no rows, torch's sum and mean are memory that nothing was written to.
        same(name, LOGITS[:0], target[:0], reduction="none")
        assert getattr(L, name)(LOGITS[:0], target[:0], reduction="sum") == 0


@pytest.mark.parametrize("name", ("multi_margin_loss", "multilabel_margin_loss"))
def test_what_follows_the_first_minus_one_or_is_masked_does_not_matter(name):
    """Gaps that are not above 0, of NaN too, add nothing."""
    scores = torch.full((2, 5), torch.nan)
    target = (
        torch.tensor([[1, 2, -1, 0, 4]] * 2) if name == "multilabel_margin_loss" else torch.tensor([1, 2])
    )
    same(name, scores, target)

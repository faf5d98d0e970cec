"""Calls that torch refuses: the same exception, and nothing read or written outside the operands.

`make test-sanitize` runs this file, among others, with the library built under AddressSanitizer.
"""

from __future__ import annotations

import functools
import warnings

import pytest
import torch
import torch.nn.functional as F
from cases import inputs_of

import fused_losses.functional as L
from fused_losses.registry import by_family

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
    """The same exception; or the same values, to what the least precise operand allows, in the same dtype."""
    ours, theirs = (outcome(getattr(module, name), arguments, options) for module in (L, F))
    if isinstance(theirs, type) or isinstance(ours, type):
        assert ours is theirs, f"{ours} instead of {theirs}"
        return
    tensors = [x for x in (theirs, *arguments) if isinstance(x, torch.Tensor)]
    floats = [x.dtype for x in tensors if x.is_floating_point() or x.is_complex()]
    bound = 16 * max(torch.finfo(dtype).eps for dtype in floats)
    torch.testing.assert_close(ours, theirs, equal_nan=True, rtol=bound, atol=bound)


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


WEIGHTED = ("binary_cross_entropy", "binary_cross_entropy_with_logits", "mse_loss", "l1_loss", "huber_loss")


@pytest.mark.parametrize("name", [loss.name for loss in by_family("pointwise")])
def test_elementwise_losses(name):
    """Operands of other shapes and dtypes, each in turn; the values are good for every loss."""
    third = name in ("gaussian_nll_loss", "margin_ranking_loss")
    operands = [torch.rand(4, 3).mul(0.9).add(0.05) for _ in range(3 if third else 2)]
    for i, x in enumerate(operands):
        for other in (
            x[:3],
            x[:, :1],
            x[:1],
            x.view(3, 4),
            x[0],
            x[0, 0],
            x[None],
            x[:, 0],
            x.double(),
            x.bfloat16(),
            x.ceil().long(),
            x.ceil().short(),
            x.bool(),
            x.cfloat(),
        ):
            same(name, *operands[:i], other, *operands[i + 1 :])
    same(name, *(x.ceil().long() for x in operands))
    same(name, *(x.cfloat() for x in operands))
    same(name, *operands, reduction="average")
    same(name, *operands, reduction="batchmean")
    for reduction in ("mean", "sum", "none"):
        same(name, *(x[:0] for x in operands), reduction=reduction)
        same(name, *(x[:, :0] for x in operands), reduction=reduction)
        same(name, *(x[0, 0] for x in operands), reduction=reduction)


@pytest.mark.parametrize("name", [*WEIGHTED, "multilabel_soft_margin_loss"])
def test_element_weights(name):
    x, t = torch.rand(4, 3), torch.rand(4, 3)
    for shape in ((4, 3), (3,), (2,), (5, 4, 3), (4, 1), ()):
        same(name, x, t, weight=torch.rand(shape))
    same(name, x, t, weight=torch.rand(4, 3).double())
    same(name, x, t, weight=torch.rand(4, 3, requires_grad=True))


def test_parameters_of_element_losses():
    x, t = torch.randn(4, 3), torch.randn(4, 3)
    for value in (-1.0, 0.0, 1, torch.inf):
        same("huber_loss", x, t, delta=value)
        same("smooth_l1_loss", x, t, beta=value)
        same("hinge_embedding_loss", x, t.sign(), margin=value)
        same("margin_ranking_loss", x, t, t.sign(), margin=value)
        same("poisson_nll_loss", x.exp(), t.abs(), log_input=False, eps=value)
        same("gaussian_nll_loss", x, t, t.abs(), eps=value)


def test_variances():
    x, t = torch.randn(4, 6, 5), torch.randn(4, 6, 5)
    for shape in (
        (4, 6, 5),
        (4, 6, 1),
        (4, 6),
        (4, 1, 5),
        (1, 6, 5),
        (4, 1, 1),
        (4,),
        (),
        (1,),
        (6, 5),
        (5, 6, 4),
    ):
        same("gaussian_nll_loss", x, t, torch.rand(shape))
    for number in (0.5, 0.0, -0.5, 1):
        same("gaussian_nll_loss", x, t, number)
    for bad in (-0.1, torch.nan, torch.inf):
        for count in (1, 40000):
            var = torch.ones(count)
            var[-1] = bad
            same("gaussian_nll_loss", torch.ones(count), torch.zeros(count), var)
    before = torch.randn(40000)
    input, var = before.clone().requires_grad_() * 1, torch.ones(40000)
    var[-1] = -1.0
    with pytest.raises(ValueError, match="negative"):
        L.gaussian_nll_loss(input, before, var, backward="inplace")
    assert torch.equal(input, before)


@pytest.mark.parametrize("name", ("soft_margin_loss", "multi_margin_loss", "nll_loss"))
def test_targets_that_cannot_have_a_gradient(name):
    x = torch.randn(4, 3, requires_grad=True)
    same(name, x, torch.ones(4, 3, requires_grad=True))


@pytest.mark.parametrize("name", ("triplet_margin_loss", "triplet_margin_with_distance_loss"))
def test_triplets(name):
    operands = [torch.randn(4, 3) for _ in range(3)]
    for i, x in enumerate(operands):
        for other in (
            x[:3],
            x[:1],
            x[:, :1],
            x[:, :2],
            x[0],
            x[None],
            x[0, 0],
            x.double(),
            x.bfloat16(),
            x.long(),
            x.cfloat(),
        ):
            for reduction in ("mean", "none"):
                same(name, *operands[:i], other, *operands[i + 1 :], reduction=reduction)
    for options in (
        {"margin": 0.0},
        {"margin": -1.0},
        {"margin": 2},
        {"reduction": "average"},
        {"swap": True},
    ):
        same(name, *operands, **options)
    for reduction in ("mean", "sum", "none"):
        same(name, *(x[:0] for x in operands), reduction=reduction)
        same(name, *(x[:, :0] for x in operands), reduction=reduction)
        same(name, *(x[0] for x in operands), reduction=reduction)
        same(name, *(x[0, 0] for x in operands), reduction=reduction)


def test_norms_and_distances():
    operands = [torch.randn(4, 3) for _ in range(3)]
    for p in (0, 0.5, 1, 2, 3, -1, torch.inf, -torch.inf, torch.nan):
        for eps in (0.0, 1e-6, 1):
            same("triplet_margin_loss", *operands, p=p, eps=eps)
    for distance in (
        F.pairwise_distance,
        torch.nn.PairwiseDistance(p=3, eps=0.1),
        torch.nn.PairwiseDistance(keepdim=True),
        functools.partial(F.pairwise_distance, p=1, keepdim=True),
        functools.partial(F.pairwise_distance, p=0),
        lambda x, y: (x - y).abs().amax(1),
        lambda x, y: 1 - F.cosine_similarity(x, y),
        torch.cdist,
    ):
        same("triplet_margin_with_distance_loss", *operands, distance_function=distance)


def test_cosine_embedding():
    name = "cosine_embedding_loss"
    x, y, t = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([1.0, -1.0, -1.0, 1.0])
    for target in (t[:3], t[:1], t[0], t[:, None], t[None], t.long(), t.int(), t.double(), t.bool(), t * 0.5):
        for reduction in ("mean", "none"):
            same(name, x, y, target, reduction=reduction)
    for other in (y[:1], y[:3], y[:, :1], y[0], y[None], y.double(), y.bfloat16(), y.long()):
        same(name, x, other, t)
        same(name, other, y, t)
    for target in (t[0], t[:1], t):
        same(name, x[0], y[0], target)
    for margin in (-1.0, 0, 0.5, 2.0):
        same(name, x, y, t, margin=margin)
    for reduction in ("mean", "sum", "none", "average"):
        same(name, x[:0], y[:0], t[:0], reduction=reduction)
        same(name, x[:, :0], y[:, :0], t, reduction=reduction)


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


@pytest.mark.parametrize("name", ("smooth_l1_loss", "kl_div"))
def test_legacy_reductions(name):
    operands = inputs_of(name, 4, 3)
    for options in ({"size_average": False}, {"reduce": False}, {"size_average": True, "reduce": True}):
        same(name, *operands, **options)


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

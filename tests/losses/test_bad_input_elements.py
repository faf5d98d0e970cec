"""Operands of elementwise losses, their shapes, dtypes and ranges: torch's values or its exception."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from kit.cases import DTYPES
from kit.refusals import same

import fused_losses.functional as L
from fused_losses.registry import by_family

WEIGHTED = ("binary_cross_entropy", "binary_cross_entropy_with_logits", "mse_loss", "l1_loss", "huber_loss")


@pytest.mark.parametrize("name", [loss.name for loss in by_family("pointwise") if loss.has_twin])
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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bad", (-0.1, 1.1, torch.nan, torch.inf, -torch.inf, 2.0))
@pytest.mark.parametrize("operand", ("input", "target"))
def test_probabilities_out_of_range(operand, bad, dtype):
    """By either operand, in torch's words; also where the gradient would overwrite the input."""
    for count in (1, 40000):
        for place in (0, -1):
            operands = {
                "input": torch.full((count,), 0.5, dtype=dtype),
                "target": torch.rand(count, dtype=dtype),
            }
            operands[operand][place] = bad
            for options in (
                {},
                {"reduction": "none"},
                {"reduction": "sum"},
                {"weight": torch.zeros(count, dtype=dtype)},
            ):
                assert words(F.binary_cross_entropy, operands, options) == words(
                    L.binary_cross_entropy, operands, options
                )
            before = operands["input"].clone()
            for backward in ("fused", "recompute", "inplace"):
                given = before.clone().requires_grad_() * 1
                with pytest.raises(
                    RuntimeError, match=f"all elements of {operand} should be between 0 and 1"
                ):
                    L.binary_cross_entropy(given, operands["target"], backward=backward)
                assert torch.equal(given.nan_to_num(7.0), before.nan_to_num(7.0))


def words(function, operands, options):
    """What the exception says that the call must raise."""
    with pytest.raises(RuntimeError) as caught:
        function(**operands, **options)
    return str(caught.value)


def test_an_ignored_target_may_be_out_of_range():
    x, t = torch.tensor([0.5, 2.0, 0.25]), torch.tensor([1.0, -1.0, 0.0])
    loss = L.binary_cross_entropy(x, t, ignore_index=-1)
    torch.testing.assert_close(loss, F.binary_cross_entropy(x[::2], t[::2]))
    with pytest.raises(RuntimeError, match="all elements of target"):
        L.binary_cross_entropy(torch.tensor([0.5, 0.5]), torch.tensor([-1.0, 3.0]), ignore_index=-1)


@pytest.mark.parametrize("name", ("sigmoid_focal_loss", "asymmetric_loss"))
def test_what_torch_does_not_have_refuses_by_itself(name):
    """The kernels' calls, and those that are composed, as a target that requires grad asks for."""
    x, loss = torch.randn(4, 3), getattr(L, name)
    powers = ("gamma",) if name == "sigmoid_focal_loss" else ("gamma_neg", "gamma_pos")
    for t in (torch.rand(4, 3), torch.rand(4, 3, requires_grad=True)):
        for power in powers:
            for bad in (-0.1, torch.nan, torch.inf):
                with pytest.raises(ValueError, match=f"{power} must be 0 or more"):
                    loss(x, t, **{power: bad})
            with pytest.raises(TypeError, match=f"{power} must be a number"):
                loss(x, t, **{power: "2"})
        for bad in (t[:3], t[:, :1], t[None]):
            with pytest.raises(ValueError, match="Target size"):
                loss(x, bad)
        for options in ({"reduction": "batchmean"}, {"reduction": "average"}, {"backward": "late"}):
            with pytest.raises(ValueError, match=next(iter(options.values()))):
                loss(x, t, **options)
        for options in ({"reduction": "sum"}, {"reduction": "none"}):
            with pytest.raises(ValueError, match="normalizer is what the mean divides by"):
                loss(x, t, normalizer=2, **options)
        with pytest.raises(ValueError, match="must be one number"):
            loss(x, t, reduction="mean", normalizer=torch.ones(2))
        with pytest.raises(TypeError, match="ignore_index must be a number"):
            loss(x, t, ignore_index="-1")
        with pytest.raises(RuntimeError, match="size of tensor"):
            loss(x, t, weight=torch.rand(2))
    for bad in (1.5, torch.nan):
        with pytest.raises(ValueError, match="alpha must be between 0 and 1"):
            L.sigmoid_focal_loss(x, x, alpha=bad)
    for clip in (-0.1, 1.1):
        with pytest.raises(ValueError, match="clip must be between 0 and 1"):
            L.asymmetric_loss(x, x, clip=clip)
    for eps in (0.0, -1.0, 2.0):
        with pytest.raises(ValueError, match="eps must be above 0"):
            L.asymmetric_loss(x, x, eps=eps)


def test_pos_weight():
    x, t = torch.randn(4, 3), torch.rand(4, 3)
    for weight in (torch.rand(3), torch.rand(2), torch.rand(4, 1), torch.rand(2, 4, 3), torch.rand(())):
        same("binary_cross_entropy_with_logits", x, t, pos_weight=weight)
    same("binary_cross_entropy_with_logits", x, t, pos_weight=torch.rand(3, requires_grad=True))

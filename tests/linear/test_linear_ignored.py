"""Linear heads of which nothing counts, or whose losses are divided by 0: what is ignored has no gradient."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from kit.device import there
from torch import nn

import fused_losses
import fused_losses.functional as L
from fused_losses.integrations.transformers import causal_lm_linear_loss

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("by_kernels_only")]

N, D, V = 7, 5, 11
TWO_ROWS = 4 * 2 * V
"""A workspace of two rows of logits in float32."""
NOTHING = torch.full((N,), -100)
SOME = torch.tensor([-100, 3, -100, 0, 10, 3, -100])
NO_BITS = torch.full((N, V), -1.0)

OPTIONS = (
    {},
    {"label_smoothing": 0.1},
    {"weight": torch.linspace(0.5, 2, V)},
    {"weight": torch.zeros(V)},
    {"z_loss": 0.1},
    {"entropy": 0.1, "softcap": 3.0, "logit_scale": 0.5},
    {"normalizer": 0},
    {"normalizer": 0, "z_loss": 0.1, "label_smoothing": 0.1},
)

IDS = ("plain", "smoothing", "weight", "no-weight", "z-loss", "terms", "normalizer", "normalizer-and-terms")


def head(dtype=torch.float32, classes=(V,)):
    generator = torch.Generator().manual_seed(0)
    shapes = (N, D), (*classes, D), classes
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def loss_and_gradients(function, operands, divisor=1, **keywords):
    """The loss of a head over a divisor, and the gradients of the head's operands."""
    operands = [x.detach().requires_grad_() for x in operands]
    loss = function(*operands, **keywords) / divisor
    upstream = torch.ones_like(loss)
    return [loss.detach(), *torch.autograd.grad(loss, operands, upstream)]


def linear(x, head, bias, target, **keywords):
    return L.linear_cross_entropy(x, head, target, linear_bias=bias, workspace=TWO_ROWS, **keywords)


def composed(x, head, bias, target, **keywords):
    logits = F.linear(x, head.flatten(0, -2), bias.flatten())
    return F.cross_entropy(logits.reshape(x.shape[0], *bias.shape), target, **keywords)


def assert_nothing(results, loss=torch.nan):
    mine, *gradients = results
    torch.testing.assert_close(mine.float(), torch.full_like(mine, loss).float(), equal_nan=True)
    for gradient in gradients:
        assert torch.equal(gradient, torch.zeros_like(gradient))


def assert_as_finite(mine, theirs):
    """Finite, and 0, where torch's results are; which of infinity and NaN else is a matter of rounding."""
    for one, other in zip(mine, theirs, strict=True):
        assert torch.equal(one.isfinite(), other.isfinite())
        assert torch.equal(one == 0, other == 0)


@pytest.mark.parametrize("options", OPTIONS, ids=IDS)
@pytest.mark.parametrize("backward", ("fused", "recompute"))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_the_mean_of_nothing(dtype, backward, options):
    options = {
        name: value.to(dtype) if isinstance(value, torch.Tensor) else value for name, value in options.items()
    }
    run = there(loss_and_gradients)
    assert_nothing(run(linear, head(dtype), target=NOTHING, backward=backward, **options))


@pytest.mark.parametrize("options", OPTIONS[:4], ids=IDS[:4])
@pytest.mark.parametrize("backward", ("fused", "recompute"))
def test_what_counts_is_as_finite_as_torchs(backward, options):
    """Also where the weights of all rows' classes are 0, and where a sum is divided by no items."""
    for reduction, divisor in (("mean", 1), ("mean", 0), ("sum", 0), ("none", 0)):
        for target in (SOME, NOTHING):
            call = {"divisor": divisor, "target": target, "reduction": reduction, **options}
            mine = there(loss_and_gradients)(linear, head(), backward=backward, **call)
            assert_as_finite(mine, loss_and_gradients(composed, head(), **call))


@pytest.mark.parametrize("backward", ("fused", "recompute"))
def test_positions_of_several_dimensions(backward):
    target = torch.full((N, 2, 3), -100)
    target[1, 0, 2] = target[4, 0, 2] = target[4, 1, 0] = 1
    for labels, divisor in itertools.product((target, torch.full_like(target, -100)), (1, 0)):
        for reduction in ("mean", "sum"):
            call = {"target": labels, "divisor": divisor, "reduction": reduction}
            mine = there(loss_and_gradients)(linear, head(classes=(4, 2, 3)), backward=backward, **call)
            assert_as_finite(mine, loss_and_gradients(composed, head(classes=(4, 2, 3)), **call))


@pytest.mark.parametrize("sparse", (False, True), ids=("dense", "sparse"))
@pytest.mark.parametrize("backward", ("fused", "recompute"))
def test_elements_of_binary_losses(backward, sparse):
    """Whole rows, whole classes, single elements and everything may be ignored."""

    def chunked(x, weight, bias, target, reduction):
        # Made sparse here, since a sparse tensor has no strides by which it could get to a device.
        target = target.to_sparse() if sparse else target
        name = "binary_cross_entropy_with_logits"
        settings = {"ignore_index": -1, "reduction": reduction, "backward": backward}
        return L.linear_loss(x, weight, target, name, linear_bias=bias, workspace=TWO_ROWS, **settings)

    def by_torch(x, weight, bias, target, reduction):
        kept = target != -1
        logits = F.linear(x, weight, bias)
        losses = F.binary_cross_entropy_with_logits(logits, target.where(kept, 0), reduction="none")
        losses = losses.where(kept, 0)
        return losses.sum() / kept.sum() if reduction == "mean" else losses.sum()

    some = NO_BITS.clone()
    some[1:4, 2::3] = 1.0
    some[2, 2] = 0.0
    for target, reduction, divisor in itertools.product((some, NO_BITS), ("mean", "sum"), (1, 0)):
        call = {"target": target, "reduction": reduction, "divisor": divisor}
        mine = there(loss_and_gradients)(chunked, head(), **call)
        theirs = loss_and_gradients(by_torch, head(), **call)
        if divisor and target is some:
            torch.testing.assert_close(mine, theirs)
        else:
            assert_as_finite(mine, theirs)


def test_likelihoods_of_nothing():
    def chunked(x, weight, bias):
        return L.linear_loss(x, weight, NOTHING.to(x.device), "nll_loss", linear_bias=bias)

    assert_nothing(there(loss_and_gradients)(chunked, head()))


def test_a_single_ignored_row():
    def single(x, weight, bias):
        return L.linear_cross_entropy(x[0], weight, NOTHING.to(x.device)[0], linear_bias=bias)

    assert_nothing(there(loss_and_gradients)(single, head()))


def test_a_retained_graph_of_nothing():
    def both(*operands):
        operands = [x.detach().requires_grad_() for x in operands]
        loss = linear(*operands, NOTHING.to(operands[0].device))
        return [
            gradient
            for again in (True, False)
            for gradient in torch.autograd.grad(loss, operands, retain_graph=again)
        ]

    assert not any(gradient.any() for gradient in there(both)(*head()))


@pytest.mark.cpu
def test_a_double_backward_of_nothing():
    operands = head()
    first = torch.autograd.grad(linear(*operands, NOTHING, z_loss=0.1), operands, create_graph=True)
    second = torch.autograd.grad(sum(x.sum() for x in first), operands, allow_unused=True)
    assert not any(gradient.any() for gradient in (*first, *second) if gradient is not None)


def test_log_sum_exps_of_a_mean_that_divides_by_zero():
    """Their gradient does not depend on the loss, which no one differentiates."""

    def lse(*operands, **keywords):
        return linear(*operands, return_lse=True, **keywords).lse.sum()

    def by_torch(x, head, bias, target, weight):
        return F.linear(x, head, bias).logsumexp(1)[target != -100].sum()

    call = {"target": SOME, "weight": torch.zeros(V)}
    expected = loss_and_gradients(by_torch, head(), **call)
    torch.testing.assert_close(there(loss_and_gradients)(lse, head(), **call), expected)


@pytest.mark.cpu
@pytest.mark.parametrize("compiler", ("aot_eager", "inductor"))
def test_compiled(compiler):
    torch._dynamo.reset()
    operands = head()

    def losses(*operands):
        logits = "binary_cross_entropy_with_logits"
        return (
            linear(*operands, NOTHING, label_smoothing=0.1),
            linear(*operands, NOTHING, normalizer=0),
            L.linear_loss(*operands[:2], NO_BITS, logits, linear_bias=operands[2], ignore_index=-1),
        )

    compiled = torch.compile(losses, fullgraph=True, backend=compiler)
    for loss in compiled(*operands):
        assert loss.isnan()
        gradients = torch.autograd.grad(loss, operands, retain_graph=True)
        assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("items", (None, 0, torch.tensor(0), torch.tensor([0])), ids=str)
def test_causal_language_models(items):
    def causal(x, weight, bias):
        return causal_lm_linear_loss(
            x.unsqueeze(0),
            weight,
            NOTHING.to(x.device).unsqueeze(0),
            lm_head_bias=bias,
            num_items_in_batch=items.to(x.device) if isinstance(items, torch.Tensor) else items,
        )

    for dtype in (torch.float32, torch.bfloat16):
        assert_nothing(there(loss_and_gradients)(causal, head(dtype)))


@pytest.mark.cpu
@pytest.mark.skipif(not hasattr(nn, "LinearCrossEntropyLoss"), reason="torch 2.11 has no such module")
def test_the_module_and_a_patch():
    x = head()[0]

    def step(loss):
        x.grad = None
        loss(x, NOTHING).backward()
        assert not x.grad.any()
        assert not any(parameter.grad.any() for parameter in loss.parameters())

    step(fused_losses.LinearCrossEntropyLoss(D, V, bias=True))
    theirs = nn.LinearCrossEntropyLoss(D, V)
    with fused_losses.patch():
        step(theirs)
        weight = head()[1]
        F.linear_cross_entropy(x, weight, NOTHING).backward()
        assert not weight.grad.any()

"""Calls that torch refuses, or warns of: what several families share, and an input in place that stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kit.cases import inputs_of
from kit.refusals import same
from torch import Tensor

import fused_losses
import fused_losses.functional as L
from fused_losses.registry import LOSSES, TWINS

LOGITS = torch.randn(4, 3)


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


@pytest.mark.parametrize("name", ("soft_margin_loss", "multi_margin_loss", "nll_loss"))
def test_targets_that_cannot_have_a_gradient(name):
    x = torch.randn(4, 3, requires_grad=True)
    same(name, x, torch.ones(4, 3, requires_grad=True))


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


LAYOUTS = {
    "coo": lambda x: x.to_sparse(),
    "csr": lambda x: x.to_sparse_csr(),
    "csc": lambda x: x.to_sparse_csc(),
    "bsr": lambda x: x.to_sparse_bsr((1, 1)),
    "bsc": lambda x: x.to_sparse_bsc((1, 1)),
    "mkldnn": lambda x: x.to_mkldnn(),
    "nested": lambda x: torch.nested.nested_tensor(list(x)),
    "jagged": lambda x: torch.nested.nested_tensor(list(x), layout=torch.jagged),
    "quantized": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
}
OF_CLASSES, OF_ELEMENTS = {"weight": torch.rand(3)}, {"weight": torch.rand(4, 3)}
WEIGHTS = {
    "cross_entropy": OF_CLASSES,
    "nll_loss": OF_CLASSES,
    "multi_margin_loss": OF_CLASSES,
    "mse_loss": OF_ELEMENTS,
    "l1_loss": OF_ELEMENTS,
    "huber_loss": OF_ELEMENTS,
    "binary_cross_entropy": OF_ELEMENTS,
    "multilabel_soft_margin_loss": OF_ELEMENTS,
    "binary_cross_entropy_with_logits": {**OF_ELEMENTS, "pos_weight": torch.rand(4, 3)},
}
"""By the losses that have some."""


def answer(module: Any, name: str, arguments: dict[Any, Tensor], reduction: str, differentiates: bool) -> Any:
    """What comes of a call: layouts and values of its results, or the exception's type and first line."""
    operands = [x for key, x in arguments.items() if isinstance(key, int)]
    options = {key: x for key, x in arguments.items() if isinstance(key, str)}
    input = operands[0]
    if differentiates and input.layout is torch.strided and not input.is_nested and not input.is_quantized:
        operands[0] = input.detach().clone().requires_grad_()
    try:
        loss = getattr(module, name)(*operands, **LOSSES[name].call | options | {"reduction": reduction})
        results = [loss.detach()]
        if loss.requires_grad:
            results += torch.autograd.grad(loss.sum(), operands[0])
    except Exception as error:
        return (type(error), str(error).splitlines()[0]), []
    return [x.layout for x in results], [x.values() if x.is_nested else x.to_dense() for x in results]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", TWINS)
def test_layouts_that_kernels_do_not_read(name, layout):
    """Of one operand or weight at a time: torch's values, gradients, layouts, exceptions and words."""
    operands = (x.float() if x.is_floating_point() else x for x in inputs_of(name, 4, 3))
    right = {**dict(enumerate(operands)), **WEIGHTS.get(name, {})}
    for key, x in right.items():
        try:
            given = {**right, key: LAYOUTS[layout](x)}
        except (RuntimeError, ValueError, TypeError, IndexError):
            continue  # torch makes no such tensor of it: of labels, or of too few dimensions
        for reduction in ("mean", "none"):
            for differentiates in (False, True):
                ours, theirs = (answer(m, name, given, reduction, differentiates) for m in (L, F))
                assert ours[0] == theirs[0], f"{key}: {ours} instead of {theirs}"
                torch.testing.assert_close(ours[1], theirs[1], equal_nan=True, rtol=1e-5, atol=1e-6)


def test_many_dimensions():
    """More than kernels are given strides for: torch's own function runs, as it does without this package."""
    shape = (2,) * 9
    x, t = torch.rand(shape), torch.rand(shape).permute(*reversed(range(9)))
    assert "up to 8 dimensions" in fused_losses.explain(L.mse_loss, x, t)
    same("mse_loss", x, t)
    with pytest.raises(RuntimeError, match="at most 8 dimensions"):
        torch.ops.fused_losses.mse_loss(x, t, None, None, [], None, None, 1, None, 0)
    for name in ("cross_entropy", "nll_loss"):
        same(name, x, torch.zeros((2, *shape[2:]), dtype=torch.long))
    same("mse_loss", x[0], t[0])

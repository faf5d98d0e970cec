"""Torch's warnings: the same words and category, at the line of the user, so that filters go on matching."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fused_losses
import fused_losses.functional as L

X, ROW = torch.rand(4, 3), torch.rand(3)
PROBABILITIES = X.softmax(1)

CALLS = {
    **{
        f"{name} broadcasts": lambda package, name=name: getattr(package, name)(X, ROW)
        for name in ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
    },
    "mse_loss broadcasts with weights": lambda package: package.mse_loss(X, ROW, weight=X),
    "mse_loss of integers broadcasts": lambda package: package.mse_loss(X.long(), ROW),
    "l1_loss of integers broadcasts": lambda package: package.l1_loss(X.long(), ROW.long(), reduction="sum"),
    "l1_loss of shapes that do not fit": lambda package: package.l1_loss(X, torch.rand(7)),
    "mse_loss in torch.func": lambda package: torch.func.grad(lambda x: package.mse_loss(x, ROW))(X),
    "kl_div": lambda package: package.kl_div(PROBABILITIES.log(), PROBABILITIES),
    "kl_div of meta tensors": lambda package: package.kl_div(X.to("meta"), X.to("meta")),
    "kl_div with size_average": lambda package: package.kl_div(X, X, size_average=True),
    "kl_div of meta tensors with size_average": lambda package: package.kl_div(
        X.to("meta"), X.to("meta"), size_average=True
    ),
    "cross_entropy with size_average": lambda package: package.cross_entropy(
        X, torch.tensor([0, 1, 2, 0]), size_average=False
    ),
    "triplet_margin_loss with reduce": lambda package: package.triplet_margin_loss(X, X, X, reduce=False),
}


def warned(call, *arguments):
    """The warnings of a call, as (words, category, file, line)."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            call(*arguments)
        except RuntimeError:  # of shapes that do not fit, which comes after the warning
            assert call is CALLS["l1_loss of shapes that do not fit"]
    return [(str(w.message), w.category, w.filename, w.lineno) for w in caught]


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_functions_warn_where_torchs_do(call):
    expected = warned(call, F)
    assert len(expected) == 1
    if "size_average" in expected[0][0]:
        # Torch names a line of its own here, in one file or another.
        assert expected[0][2] in (F.__file__, nn._reduction.__file__)
        expected = [(*expected[0][:2], __file__)]
        assert [(*w[:3],) for w in warned(call, L)] == expected
    else:
        assert warned(call, L) == expected


@pytest.mark.parametrize("name", ("MSELoss", "L1Loss", "SmoothL1Loss", "HuberLoss", "KLDivLoss"))
def test_modules_warn_at_the_line_that_calls_them(name):
    def call(module):
        module(X, ROW)

    line = call.__code__.co_firstlineno + 1
    hooked = getattr(fused_losses, name)()
    hooked.register_forward_pre_hook(lambda *_: None)
    torchs = warned(call, getattr(nn, name)())
    assert len(torchs) == 1
    for module in (getattr(fused_losses, name)(), hooked):
        assert warned(call, module) == [(*torchs[0][:2], __file__, line)]
    with fused_losses.patch():
        assert warned(call, getattr(nn, name)()) == torchs


def test_filters_by_words_and_lines_match():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", "reduction: 'mean' divides the total loss", UserWarning)
        warnings.filterwarnings("ignore", "size_average and reduce args", UserWarning)
        warnings.filterwarnings("ignore", "Using a target size", UserWarning, module=__name__)
        for call in CALLS.values():
            try:
                call(L)
            except RuntimeError:
                continue
    assert not caught


def test_constructors_warn_as_torchs_do():
    assert warned(fused_losses.MSELoss, False) == warned(nn.MSELoss, False) != []

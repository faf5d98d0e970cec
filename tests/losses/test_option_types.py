"""Options of unusual types are taken, or refused with the same exception, as torch does."""

from __future__ import annotations

import enum
import inspect
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from kit.cases import inputs_of
from kit.refusals import outcome

import fused_losses.functional as L
from fused_losses.registry import TWINS


class One(enum.IntEnum):
    ONE = 1


OTHERS = (
    *("1", None, 1, True, 2.5, 1j, [1], One.ONE, Fraction(1), Decimal(1)),
    *(torch.tensor(1.0), torch.tensor(1), torch.ones(2)),
    *(np.float32(1), np.float64(1), np.float16(1), np.int64(1), np.int32(1), np.uint8(1), np.bool_(True)),
    *(np.array(1), np.array(1.0), np.array([1.0])),
    # Within 64 bits, and not.
    *(2**63 - 1, 2**63, 2**64, -(2**63), -(2**64), 10**400),
    *(float("nan"), float("inf"), -1, 0),
)

OPTIONS = [
    (name, parameter.name)
    for name in TWINS
    for parameter in inspect.signature(getattr(F, name)).parameters.values()
    if isinstance(parameter.default, (bool, int, float))
]


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_other_types(name, option):
    operands = TWINS[name].inputs((4, 5), torch.Generator().manual_seed(0))
    for value in OTHERS:
        options = {**TWINS[name].call, option: value}
        ours, torchs = (outcome(getattr(package, name), operands, options) for package in (L, F))
        if isinstance(torchs, torch.Tensor):
            torch.testing.assert_close(
                ours, torchs, equal_nan=True, msg=lambda text, value=value: f"{value!r}: {text}"
            )
        else:
            assert ours is torchs, f"{value!r}: {ours} instead of {torchs}"


@pytest.mark.parametrize("option", (2**64, np.array([1, 2]), "1"), ids=repr)
@pytest.mark.parametrize("name", ("cross_entropy", "nll_loss"))
def test_a_refused_index_is_named_in_torchs_words(name, option):
    operands = TWINS[name].inputs((4, 5), torch.Generator().manual_seed(0))
    words = []
    for package in (L, F):
        with pytest.raises((TypeError, ValueError, RuntimeError)) as refused:
            getattr(package, name)(*operands, ignore_index=option)
        words.append((refused.type, str(refused.value)))
    assert words[0] == words[1]


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="torch 2.11 has no linear_cross_entropy")
@pytest.mark.parametrize("option", ("ignore_index", "label_smoothing"))
def test_other_types_for_a_linear_head(option):
    operands = torch.randn(4, 3), torch.randn(5, 3), torch.tensor([0, 1, 2, 4])
    for value in OTHERS:
        ours, torchs = (outcome(p.linear_cross_entropy, operands, {option: value}) for p in (L, F))
        if isinstance(torchs, torch.Tensor):
            torch.testing.assert_close(
                ours, torchs, equal_nan=True, msg=lambda text, value=value: f"{value!r}: {text}"
            )
        else:
            assert ours is torchs, f"{value!r}: {ours} instead of {torchs}"


@pytest.mark.parametrize("name", ("binary_cross_entropy", "binary_cross_entropy_with_logits"))
def test_what_may_be_ignored_is_a_number(name):
    operands = TWINS[name].inputs((4, 5), torch.Generator().manual_seed(0))
    loss = getattr(L, name)
    for value in ("0", [0], 1j, np.array([0.0, 1.0]), torch.ones(2)):
        with pytest.raises(TypeError, match="ignore_index must be a number, not"):
            loss(*operands, ignore_index=value)
    for value in (0, 0.0, False, np.float32(0), np.int64(0), Fraction(0)):
        torch.testing.assert_close(loss(*operands, ignore_index=value), loss(*operands, ignore_index=0))


@pytest.mark.parametrize("name", TWINS)
def test_none_as_an_operand(name):
    """A loader without labels, or a model that returns nothing, meets torch's exception."""
    operands = inputs_of(name, 6, 4)
    for index in range(2):
        given = [None if i == index else x for i, x in enumerate(operands)]
        with pytest.raises(Exception) as theirs:
            getattr(F, name)(*given)
        with pytest.raises(theirs.type) as ours:
            getattr(L, name)(*given)
        assert str(ours.value)


@pytest.mark.parametrize("reduction", (np.array(0.1), ["mean"], {}, np.array([1, 2])), ids=str)
def test_a_reduction_that_cannot_be_hashed(reduction):
    x = torch.randn(3, 4)
    for name, target in (("mse_loss", x), ("cross_entropy", torch.tensor([0, 1, 2]))):
        with pytest.raises(Exception) as theirs:
            getattr(F, name)(x, target, reduction=reduction)
        with pytest.raises(theirs.type):
            getattr(L, name)(x, target, reduction=reduction)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16, torch.float32), ids=str)
@pytest.mark.parametrize("ignored", (0.3, -0.1, 1 / 3, -100, 1e6, float("inf")))
def test_an_ignored_number_is_one_of_the_target_s_dtype(ignored, dtype):
    """As torch compares them: 0.3 is in a tensor of 16 bits that 0.3 was written to."""
    target = torch.tensor([ignored, 0.5], dtype=dtype)
    expected = torch.where(target == ignored, 0, 1)
    for name in ("binary_cross_entropy_with_logits", "binary_cross_entropy"):
        input = torch.tensor([0.25, 0.25], dtype=dtype)
        losses = getattr(L, name)(input, target, ignore_index=ignored, reduction="none")
        assert torch.equal((losses != 0).long(), expected)


def test_a_normalizer_that_requires_grad_is_refused():
    x, y = torch.randn(3, 4, requires_grad=True), torch.tensor([0, 1, 2])
    normalizer = torch.tensor(3.0, requires_grad=True)
    for call in (
        lambda n: L.cross_entropy(x, y, normalizer=n),
        lambda n: L.linear_cross_entropy(x, torch.randn(5, 4), y, normalizer=n),
    ):
        with pytest.raises(ValueError, match="requires grad"):
            call(normalizer)
        call(normalizer.detach())
        with torch.no_grad():
            call(normalizer)

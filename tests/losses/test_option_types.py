"""Options of unusual types are taken, or refused with the same exception, as torch does."""

from __future__ import annotations

import inspect

import pytest
import torch
import torch.nn.functional as F
from kit.refusals import outcome

import fused_losses.functional as L
from fused_losses.registry import TWINS

OTHERS = ("1", None, 1, True, 2.5, 1j, torch.tensor(1.0), [1])

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
            torch.testing.assert_close(ours, torchs, msg=lambda text, value=value: f"{value!r}: {text}")
        else:
            assert ours is torchs, f"{value!r}: {ours} instead of {torchs}"

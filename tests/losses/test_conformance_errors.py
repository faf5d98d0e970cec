"""Calls that torch refuses raise its exception: PyTorch's own samples of errors, and some of every loss."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from kit.cases import inputs_of

import fused_losses
from fused_losses import functional as ours
from fused_losses.registry import LOSSES

pytest.importorskip("expecttest")

from kit.torch_samples import MODULES, OPS, by_loss, ignore_warnings
from torch.testing._internal.common_modules import ModuleErrorEnum

pytestmark = ignore_warnings


def module_errors_of(name):
    info = MODULES[name]
    options = {"device": "cpu", "dtype": torch.float32, "requires_grad": True, "training": True}
    return list(info.module_error_inputs_func(info, **options)) if info.module_error_inputs_func else []


WITH_ERRORS = [name for name, op in OPS.items() if op.error_inputs_func and [*op.error_inputs("cpu")]]
MODULES_WITH_ERRORS = [name for name in MODULES if module_errors_of(name)]


@pytest.mark.parametrize("name", WITH_ERRORS)
def test_error_inputs(name, sample_counts):
    for error in OPS[name].error_inputs("cpu"):
        sample = error.sample_input
        for function in (getattr(F, name), getattr(ours, name)):
            with pytest.raises(error.error_type, match=error.error_regex):
                function(sample.input, *sample.args, **sample.kwargs)
        sample_counts["of errors"] += 1


@pytest.mark.parametrize("name", MODULES_WITH_ERRORS)
def test_module_error_inputs(name, sample_counts):
    kind = LOSSES[name].module
    for error in module_errors_of(name):
        constructor = error.module_error_input.constructor_input
        forward = error.module_error_input.forward_input
        for package in (torch.nn, fused_losses):
            with pytest.raises(error.error_type, match=error.error_regex):
                module = getattr(package, kind)(*constructor.args, **constructor.kwargs)
                assert error.error_on is ModuleErrorEnum.FORWARD_ERROR
                module(*forward.args, **forward.kwargs)
        sample_counts["of errors"] += 1


def refusal(package, functions, name, as_module, operands, options):
    """The exception's type and message; or None."""
    try:
        if as_module:
            getattr(package, LOSSES[name].module)(**options)(*operands)
        else:
            getattr(functions, name)(*operands, **options)
    except Exception as error:
        return type(error), str(error)
    return None


@by_loss
@pytest.mark.parametrize("as_module", (False, True), ids=("function", "module"))
def test_wrong_operands_and_options(name, as_module):
    """Each operand with three more rows, and an unknown reduction: torch's exception, with its message.

    Of nine losses and most modules, torch has no samples of errors; test_bad_input*.py have more of them.
    """
    operands = inputs_of(name, 4, 3)
    calls = [({}, [*operands[:i], torch.cat([x, x[:3]]), *operands[i + 1 :]]) for i, x in enumerate(operands)]
    for more, wrong in (*calls, ({"reduction": "average"}, operands)):
        options = LOSSES[name].call | more
        theirs = refusal(torch.nn, F, name, as_module, wrong, options)
        assert theirs and refusal(fused_losses, ours, name, as_module, wrong, options) == theirs

"""PyTorch's own samples of every loss and module: kernels are as accurate as torch."""

from __future__ import annotations

import copy
import functools
import itertools
import pickle

import pytest
import torch
import torch.nn.functional as F
from kit.device import there
from kit.strictness import strictly
from kit.tolerance import assert_same_results, eager_of, fresh

import fused_losses
from fused_losses import functional as ours
from fused_losses.registry import LOSSES

pytest.importorskip("expecttest")

from kit.torch_samples import (
    LAYOUTS,
    OPS,
    STRATEGIES,
    by_dtype,
    by_loss,
    draws_of,
    ignore_warnings,
    is_torchs,
    module_inputs_of,
    samples_in_layouts,
    samples_of,
)

pytestmark = ignore_warnings
assert_identical = functools.partial(torch.testing.assert_close, rtol=0, atol=0, equal_nan=True)


@pytest.mark.gpu
@by_loss
@by_dtype
@pytest.mark.usefixtures("by_kernels_only")
def test_values_and_gradients(name, dtype, sample_counts):
    """In each layout, by each strategy, judged by the same results. No call may run through torch."""
    functions = {x: functools.partial(there(getattr(ours, name)), backward=x) for x in STRATEGIES}
    for draws in draws_of(lambda seed: samples_in_layouts(name, dtype, seed)):
        by_layout = dict(zip(LAYOUTS, zip(*draws, strict=True), strict=True))
        if is_torchs(name, draws[0][0]):
            continue
        calls = {
            f"{layout}, {backward}": (function, samples)
            for layout, samples in by_layout.items()
            for backward, function in functions.items()
        }
        assert_same_results(name, eager_of(name), by_layout["contiguous"], calls)
        sample_counts["for values and gradients, by kernels only"] += len(draws) * len(calls)


@pytest.mark.gpu
@by_loss
def test_what_has_no_kernels_is_torchs(name, sample_counts):
    """The samples that the test above leaves out, in all dtypes that torch has; strict calls raise."""
    for dtype in sorted(OPS[name].supported_dtypes("cpu"), key=str):
        calls = [call for calls in samples_in_layouts(name, dtype) for call in calls]
        for sample, backward in itertools.product(calls, STRATEGIES):
            if is_torchs(name, sample):
                args, kwargs = fresh(sample)
                function = functools.partial(there(getattr(ours, name)), backward=backward)
                with strictly(), pytest.raises(RuntimeError, match="would run through torch"):
                    function(*args, **kwargs)
                assert_identical(function(*args, **kwargs), getattr(F, name)(*args, **kwargs))
                sample_counts["by torch, of dtypes or shapes without kernels"] += 1


@by_loss
def test_values_under_patch(name, sample_counts):
    torchs = getattr(F, name)
    for args, kwargs in samples_of(name, torch.float64, with_references=False):
        expected = torchs(*args, **kwargs)
        with fused_losses.patch():
            torch.testing.assert_close(getattr(F, name)(*args, **kwargs), expected)
            torch.testing.assert_close(OPS[name](*args, **kwargs), expected)
        sample_counts["under patch"] += 1


def as_one_call(kind, **options):
    """The module's class as a function of what its constructor and its forward take."""
    return lambda *args, **keywords: kind(**keywords, **options)(*args)


@pytest.mark.gpu
@by_loss
@by_dtype
@pytest.mark.usefixtures("by_kernels_only")
def test_module_values_and_gradients(name, dtype, sample_counts):
    mine, torchs = (getattr(package, LOSSES[name].module) for package in (fused_losses, torch.nn))
    for draws in draws_of(lambda seed: module_inputs_of(name, dtype, seed)):
        samples = [(operands, options) for options, operands in draws]
        calls = {x: (there(as_one_call(mine, backward=x)), samples) for x in STRATEGIES}
        assert_same_results(name, eager_of(name, as_one_call(torchs)), samples, calls)
        sample_counts["of modules"] += len(draws) * len(calls)


@by_loss
def test_module_is_torchs_in_all_but_speed(name):
    kind, torchs = (getattr(package, LOSSES[name].module) for package in (fused_losses, torch.nn))
    for options, operands in module_inputs_of(name, torch.float32):
        module, twin = kind(**options, backward="recompute"), torchs(**options)
        assert isinstance(module, torchs)
        assert repr(module) == repr(twin)
        assert_identical(module.state_dict(), twin.state_dict())
        module.load_state_dict(twin.state_dict())
        loss = module(*operands)
        for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert type(copied) is kind and copied.fused_options["backward"] == "recompute"
            assert_identical(copied.state_dict(), twin.state_dict())
            assert_identical(copied(*operands), loss)
        # What torch.nn has made knows nothing of `fused_options`.
        twin.__class__ = kind
        assert_identical(twin(*operands), loss)

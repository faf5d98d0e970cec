"""PyTorch's own samples of linear_cross_entropy and its module, at torch's options and without them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from kit.tolerance import assert_as_accurate, fresh, loss_and_gradients, widened

import fused_losses
import fused_losses.functional as L

pytest.importorskip("expecttest")  # which torch's samples import

from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db

OPS = {op.variant_test_name: op for op in op_db if op.name == "nn.functional.linear_cross_entropy"}
MODULE = next((info for info in module_db if info.name == "nn.LinearCrossEntropyLoss"), None)
DRAWS = 2
"""Samples that differ in values only and are judged together: torch's error in a single loss may be 0."""

pytestmark = [
    pytest.mark.skipif(not OPS, reason=f"torch {torch.__version__} has no linear_cross_entropy"),
    pytest.mark.filterwarnings("ignore:linear_cross_entropy"),
]
by_dtype_and_products = pytest.mark.parametrize(
    ("dtype", "cpu_products"),
    [
        (torch.float64, False),
        (torch.float32, False),
        *((dtype, natively) for dtype in (torch.bfloat16, torch.float16) for natively in (True, False)),
    ],
    indirect=["cpu_products"],
)


def in_float64(sample):
    """The same values, and no options: torch's chunks are an approximation of what they are judged by."""
    args, kwargs = widened(sample)
    return args, {name: value for name, value in kwargs.items() if name != "options"}


def assert_as_accurate_together(ours, eager, exact, name):
    """The results of all draws, each a list of loss and gradients; terms of products are as large as any."""
    for i, each in enumerate(zip(*(zip(*draws, strict=True) for draws in (ours, eager, exact)), strict=True)):
        mine, theirs, reference = map(torch.stack, each)
        size = float(reference.abs().nan_to_num(0, 0, 0).max()) if reference.numel() else 0.0
        if mine.dtype is torch.float64:  # which has no better reference
            torch.testing.assert_close(mine, reference, rtol=1e-13, atol=1e-14 * size, equal_nan=True)
        else:
            part = f"{'gradient' if i else 'loss'} of {name}"
            assert_as_accurate(mine, theirs, reference, dtype=theirs.dtype, name=part, terms=size)


@by_dtype_and_products
@pytest.mark.parametrize("variant", OPS or ("",), ids=lambda variant: variant or "reference")
@pytest.mark.usefixtures("by_kernels_only")
def test_samples(variant, dtype, cpu_products, sample_counts):
    def samples(seed):
        torch.manual_seed(seed)
        drawn = OPS[variant].sample_inputs("cpu", dtype, requires_grad=True)
        return [((sample.input, *sample.args), sample.kwargs) for sample in drawn]

    for draws in zip(*map(samples, range(DRAWS)), strict=True):
        upstream = torch.ones_like(F.linear_cross_entropy(*draws[0][0], **draws[0][1]))
        assert_as_accurate_together(
            [loss_and_gradients(L.linear_cross_entropy, fresh(sample), upstream) for sample in draws],
            [loss_and_gradients(F.linear_cross_entropy, fresh(sample), upstream) for sample in draws],
            [loss_and_gradients(F.linear_cross_entropy, in_float64(sample), upstream) for sample in draws],
            name=f"{[tuple(x.shape) for x in draws[0][0]]}, {draws[0][1]}",
        )
        sample_counts["of linear heads"] += len(draws)


@by_dtype_and_products
def test_the_modules_samples(dtype, cpu_products, sample_counts):
    def samples(seed):
        torch.manual_seed(seed)
        return MODULE.module_inputs_func(MODULE, device="cpu", dtype=dtype, requires_grad=True, training=True)

    def results(module, input, target):
        loss = module(input, target)
        return [loss.detach(), *torch.autograd.grad(loss.sum(), [input, *module.parameters()])]

    # The samples are all combinations of a few options; what the module adds is to pass them on. A stride
    # that shares no factor with the numbers of options' values meets all of these values.
    for draws in list(zip(*map(samples, range(DRAWS)), strict=True))[::7]:
        ours, eager, exact = [], [], []
        for sample in draws:
            constructor, operands = sample.constructor_input, sample.forward_input.args
            options = dict(constructor.kwargs)
            theirs = torch.nn.LinearCrossEntropyLoss(*constructor.args, **options)
            mine = fused_losses.LinearCrossEntropyLoss(*constructor.args, **options)
            mine.load_state_dict(theirs.state_dict())
            wide = torch.nn.LinearCrossEntropyLoss(*constructor.args, **{**options, "options": None}).double()
            wide.load_state_dict(theirs.state_dict())
            (in_wide, _) = in_float64((operands, {}))
            ours.append(results(mine, *operands))
            eager.append(results(theirs, *operands))
            exact.append(results(wide, *in_wide))
        assert_as_accurate_together(ours, eager, exact, name=f"{constructor}, {sample.forward_input}")
        sample_counts["of the linear heads' module"] += len(draws)

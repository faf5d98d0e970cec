"""Every loss has all its parts, and every operator does what its schema and its fake say."""

from __future__ import annotations

import inspect
import itertools

import pytest
import torch
import torch.nn.functional as F

import fused_losses
from fused_losses import _C, ops
from fused_losses import functional as ours
from fused_losses.bench import cases as bench_cases
from fused_losses.registry import LOSSES, by_family

KINDS = ("forward", "forward_inplace", "backward", "backward_into")
SUFFIXES = ("", "_", "_backward", "_backward_")
REDUCTIONS = (0, 1, 2)  # none, mean, sum
KEYWORD_ONLY = inspect.Parameter.KEYWORD_ONLY


@pytest.mark.parametrize("name", LOSSES)
def test_parts_are_there(name):
    loss = LOSSES[name]
    assert loss.name == name and hasattr(F, name) and hasattr(torch.nn, loss.module)
    assert name in ours.__all__ and callable(getattr(ours, name))
    assert loss.module in fused_losses.__all__
    assert issubclass(getattr(fused_losses, loss.module), getattr(torch.nn, loss.module))
    formulas = {"pointwise": "pointwise_losses", "softmax": "softmax_losses"}[loss.family]
    assert name in getattr(_C, formulas)
    assert name in bench_cases.LOSSES
    operators = ops.OPERATORS[name]
    for kind, suffix in zip(KINDS, SUFFIXES, strict=True):
        operator = getattr(operators, kind)
        assert operator is getattr(torch.ops.fused_losses, name + suffix).default
        assert torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), "CPU")


def test_no_part_is_without_a_loss():
    assert set(ours.__all__) == set(LOSSES) == set(ops.OPERATORS) == set(bench_cases.LOSSES)
    modules = {name for name in fused_losses.__all__ if inspect.isclass(getattr(fused_losses, name))}
    assert modules == {loss.module for loss in LOSSES.values()}
    for family, formulas in (("pointwise", "pointwise_losses"), ("softmax", "softmax_losses")):
        assert {loss.name for loss in by_family(family)} == set(getattr(_C, formulas))


def assert_signature_extends(function, torchs, extras):
    """Torch's parameters, of the same kinds and defaults, and after them the extras, keyword-only."""
    mine = list(inspect.signature(function).parameters.values())
    theirs = list(inspect.signature(torchs).parameters.values())
    shape = [(p.name, p.kind, p.default) for p in theirs]
    assert [(p.name, p.kind, p.default) for p in mine[: len(theirs)]] == shape
    assert {p.name for p in mine[len(theirs) :]} == set(extras)
    for parameter in mine[len(theirs) :]:
        assert parameter.kind is KEYWORD_ONLY and parameter.default is not inspect.Parameter.empty


@pytest.mark.parametrize("name", LOSSES)
def test_signatures(name):
    loss = LOSSES[name]
    extras = ("backward", *loss.extensions)
    assert_signature_extends(getattr(ours, name), getattr(F, name), extras)
    kinds = [getattr(package, loss.module) for package in (fused_losses, torch.nn)]
    assert_signature_extends(kinds[0].__init__, kinds[1].__init__, extras)
    assert_signature_extends(kinds[0].forward, kinds[1].forward, ())


def pointwise_operands(name):
    """(input, target, weight, extra) in the layouts and dtypes that kernels tell apart."""
    takes_weights = LOSSES[name].extra is not None

    def rand(*shape, dtype=torch.float32):
        return torch.rand(shape, dtype=torch.float64).mul(0.9).add(0.05).to(dtype)

    yield rand(4, 5), rand(4, 5), None, None
    yield rand(5, 4).T, rand(4, 5), rand(4, 5), rand(5) if takes_weights else None
    yield rand(3, 2, 4, dtype=torch.bfloat16), rand(3, 2, 4, dtype=torch.bfloat16), None, None
    yield rand(4, 10)[:, ::2], rand(5, 4).T, rand(4, 5), None
    yield rand(dtype=torch.float64), rand(dtype=torch.float64), None, None


def softmax_operands(name):
    """(input, target, weight): rows, positions, classes that lie apart, and probabilities."""
    yield torch.randn(4, 5), torch.tensor([0, 4, 1, 1]), None
    yield torch.randn(5, 4).T, torch.tensor([3, 2, 0, 4]), torch.rand(5)
    yield torch.randn(2, 3, 2, 2, dtype=torch.bfloat16), torch.randint(3, (2, 2, 2)), None
    channels_last = torch.randn(2, 3, 2, 2).to(memory_format=torch.channels_last)
    yield channels_last, torch.randint(3, (2, 2, 2), dtype=torch.uint8), torch.rand(3)
    yield torch.randn(3, dtype=torch.float64), torch.tensor(2), None
    if name == "cross_entropy":
        yield torch.randn(4, 5), torch.randn(4, 5).softmax(1), torch.rand(5)
        yield torch.randn(2, 3, 4), torch.randn(2, 4, 3).softmax(2).transpose(1, 2), None


def calls_of(name):
    """(operands, options, reduction, gradients), the masks of gradients in turn over reductions."""
    torch.manual_seed(0)
    softmax = LOSSES[name].family == "softmax"
    options = (1, 0.1 if name == "cross_entropy" else 0.0) if softmax else ((), None)
    for operands in (softmax_operands if softmax else pointwise_operands)(name):
        masks = range(4) if operands[1].is_floating_point() else range(2)
        # Probabilities take no ignored class.
        chosen = (-100, *options[1:]) if softmax and operands[1].is_floating_point() else options
        yield from itertools.product([operands], [chosen], REDUCTIONS, masks)


def check(operator, arguments, dynamic):
    """`dynamic` traces the operator, which takes long."""
    utils = ["test_schema", "test_faketensor"] + ["test_aot_dispatch_dynamic"] * dynamic
    results = torch.library.opcheck(operator, arguments, test_utils=utils)
    assert set(results.values()) == {"SUCCESS"}


def dense_copy(tensor):
    """What may be written over: the same layout, if that is dense."""
    return tensor.clone(memory_format=torch.preserve_format)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("kind", KINDS)
def test_opcheck(name, kind):
    operators, loss_row = ops.OPERATORS[name], LOSSES[name]
    for operands, options, reduction, wanted in calls_of(name):
        # One traced call for every sort of operands.
        dynamic = (reduction, wanted) == (1, 1)
        tail = (*options, reduction, None, wanted)
        if kind == "forward":
            check(operators.forward, (*operands, *tail), dynamic)
            check(operators.forward, (*operands, *tail[:-1], wanted | ops.STATISTICS), False)
            continue
        if kind == "forward_inplace":
            # Not compiled, and not tagged as fit for it: it changes an argument and returns tensors.
            assert torch.Tag.pt2_compliant_tag not in operators.forward_inplace.tags
            check(operators.forward_inplace, (dense_copy(operands[0]), *operands[1:], *tail), False)
            continue
        loss, *outputs = operators.forward(*operands, *options, reduction, None, ops.STATISTICS)
        # The softmax family takes them, or computes them again; the backward of nll_loss needs none.
        kept = [outputs[0] if loss_row.has_statistics and reduction else None]
        if loss_row.family == "pointwise":
            kept = []
        arguments = (torch.full_like(loss, 0.5), *operands, *kept, *options, reduction, wanted)
        if kind == "backward":
            check(operators.backward, arguments, dynamic)
            continue
        for ready in (False, True) if wanted else ():
            check(operators.backward_into, (operators.backward(*arguments), ready, *arguments), dynamic)


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.bfloat16, torch.float16), ids=str)
def test_opcheck_scale(dtype):
    for gradient in (
        torch.randn(4, 5, dtype=dtype),
        torch.randn(5, 4, dtype=dtype).T,
        torch.randn((), dtype=dtype),
    ):
        check(ops.scale_, (gradient, torch.tensor(0.5, dtype=dtype)), True)
        expected = gradient * 0.5
        ops.scale_(gradient, torch.tensor(0.5, dtype=dtype))
        torch.testing.assert_close(gradient, expected, rtol=0, atol=0)

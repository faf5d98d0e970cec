"""Every loss has all its parts, and every operator does what its schema and its fake say."""

from __future__ import annotations

import inspect
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.nn.modules import loss as torch_losses

import fused_losses
from fused_losses import _C, backends, ops
from fused_losses import functional as ours
from fused_losses.losses.plans import PLANS
from fused_losses.registry import LINEAR, LOSSES, STATISTICS, TWINS, by_family

KINDS = ("forward", "forward_inplace", "backward", "backward_into")
SUFFIXES = ("", "_", "_backward", "_backward_")
KEYWORD_ONLY = inspect.Parameter.KEYWORD_ONLY

# In fused_losses, but torch's own for now.
TORCHS = {"CTCLoss": "ctc_loss"}
TORCHS_MODULES = {*TORCHS, "NLLLoss2d", "AdaptiveLogSoftmaxWithLoss"}
# In fused_losses.functional beyond torch: distances that kernels know, and losses over linear heads.
BEYOND = {
    "CrossEntropyOutput",
    "clip_loss",
    "cosine_distance",
    "euclidean_distance",
    "linear_loss",
    "siglip_loss",
}


def formulas_in_triton():
    """Those of engines that serve a single loss, or two, are the engine's own."""
    from fused_losses.triton_kernels import ENGINES, pointwise, vectors

    own = {loss.name for family in ("softmax", "class_margin") for loss in by_family(family)}
    assert set(ENGINES) == {loss.family for loss in LOSSES.values()}
    return {*pointwise.FORMULAS, *vectors.FORMULAS, *own}


@pytest.mark.parametrize("name", LOSSES)
def test_parts_are_there(name):
    """Formula, registry, operators and their kernels, function, module."""
    loss = LOSSES[name]
    assert name in _C.losses[loss.family]
    assert loss.name == name and name in PLANS
    assert loss.has_twin == hasattr(F, name) == hasattr(torch.nn, loss.module)
    assert loss.has_twin or loss.composed is not None
    assert name in ours.__all__ and callable(getattr(ours, name))
    assert loss.module in fused_losses.__all__
    assert issubclass(getattr(fused_losses, loss.module), getattr(torch.nn, loss.module, torch.nn.Module))
    if backends.has_triton():
        assert name in formulas_in_triton()
    operators = ops.OPERATORS[name]
    for kind, suffix in zip(KINDS, SUFFIXES, strict=True):
        operator = getattr(operators, kind)
        assert operator is getattr(torch.ops.fused_losses, name + suffix).default
        assert torch._C._dispatch_has_kernel_for_dispatch_key(operator.name(), "CPU")


def test_no_part_is_without_a_loss():
    assert set(ours.__all__) == {*LOSSES, *TORCHS.values(), *LINEAR.values(), *BEYOND}
    assert set(ops.OPERATORS) == set(LOSSES)
    modules = {name for name in fused_losses.__all__ if inspect.isclass(getattr(fused_losses, name))}
    linear = {name for name in LINEAR if hasattr(torch.nn, name)}  # torch 2.11 has none
    assert modules == {loss.module for loss in LOSSES.values()} | TORCHS_MODULES | linear
    assert {family: set(names) for family, names in _C.losses.items()} == {
        family: {loss.name for loss in by_family(family)} for family in _C.losses
    }
    assert sum(len(names) for names in _C.losses.values()) == len(LOSSES)


def test_every_loss_of_torch_is_there():
    modules = {*torch_losses.__all__, "AdaptiveLogSoftmaxWithLoss"}
    assert modules <= set(fused_losses.__all__)
    for name in TORCHS_MODULES:
        assert getattr(fused_losses, name) is getattr(torch.nn, name)
    functions = {name for name in dir(F) if name.endswith("_loss") or "cross_entropy" in name}
    functions = {name for name in functions | {"kl_div"} if not name.startswith("_")}
    functions |= {name for name in dir(F) if "loss" in name and callable(getattr(F, name)) and name[0] != "_"}
    assert functions <= set(ours.__all__), functions - set(ours.__all__)
    for name in TORCHS.values():
        assert getattr(ours, name) is getattr(F, name)


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
def test_plans_take_what_functions_take(name):
    """In the same order and with the same defaults, but for deprecated arguments and what runs a call."""
    functions = (getattr(ours, name), PLANS[name])
    taken, planned = ([*inspect.signature(function).parameters.values()] for function in functions)
    more = {"size_average", "reduce", "backward"}
    more |= {parameter.name for parameter in taken if parameter.name.startswith("return_")}
    expected = [(p.name, p.default) for p in taken if p.name not in more]
    assert [(p.name, p.default) for p in planned] == expected


@pytest.mark.parametrize("name", TWINS)
def test_signatures(name):
    loss = LOSSES[name]
    extras = ("backward", *loss.extensions)
    assert_signature_extends(getattr(ours, name), getattr(F, name), extras)
    kinds = [getattr(package, loss.module) for package in (fused_losses, torch.nn)]
    # Of a batch, not of a module.
    assert_signature_extends(kinds[0].__init__, kinds[1].__init__, set(extras) - {"normalizer"})
    assert_signature_extends(kinds[0].forward, kinds[1].forward, ())


@pytest.mark.filterwarnings("ignore:reduction")
@pytest.mark.parametrize("name", LOSSES)
def test_modules_take_their_operands_by_keyword(name):
    operands = LOSSES[name].inputs((4, 5), torch.Generator().manual_seed(0))
    module = getattr(fused_losses, LOSSES[name].module)()
    parameters = inspect.signature(module.forward).parameters.values()
    names = [parameter.name for parameter in parameters if parameter.kind is not KEYWORD_ONLY]
    by_name = module(**dict(zip(names, operands, strict=True)))
    assert torch.equal(by_name, module(*operands))
    assert torch.equal(by_name, getattr(ours, name)(*operands))


@pytest.mark.parametrize("name", LOSSES)
def test_modules_can_be_subclassed(name):
    module = getattr(fused_losses, LOSSES[name].module)

    class Scaled(module):
        def forward(self, *operands):
            return 2 * super().forward(*operands)

    operands = LOSSES[name].inputs((4, 5), torch.Generator().manual_seed(0))
    keywords = LOSSES[name].call
    assert torch.equal(Scaled(**keywords)(*operands), 2 * module(**keywords)(*operands))


def rand(*shape, dtype=torch.float32):
    """Away from 0 and 1: probabilities and variances, too."""
    return torch.rand(shape, dtype=torch.float64).mul(0.9).add(0.05).to(dtype)


def pointwise_operands(name):
    """(input, target, weight, extra) in the layouts and dtypes that kernels tell apart."""
    third = name in ("gaussian_nll_loss", "margin_ranking_loss")
    optional = name == "binary_cross_entropy_with_logits"
    for first, second, weight, extra in (
        (rand(4, 5), rand(4, 5), None, rand(4, 5)),
        (rand(5, 4).T, rand(4, 5), rand(4, 5), rand(5)),
        (rand(3, 2, 4, dtype=torch.bfloat16), rand(3, 2, 4, dtype=torch.bfloat16), None, rand(3, 1, 4)),
        (rand(4, 10)[:, ::2], rand(5, 4).T, rand(4, 5), rand(4, 5)),
        (rand(dtype=torch.float64), rand(dtype=torch.float64), None, rand(dtype=torch.float64)),
        *([(rand(4, 1), rand(5), None, rand(4, 5))] if not name.startswith("binary") else []),
    ):
        yield first, second, weight, extra if third or (optional and weight is not None) else None


def rows_operands(name):
    """(input, target, none, third): vectors, also broadcast ones and those whose elements lie apart."""
    last = 1 if name == "cosine_embedding_loss" else 5
    yield torch.randn(4, 5), torch.randn(4, 5), None, torch.randn(4, last)
    yield torch.randn(5, 4).T, torch.randn(4, 5), None, torch.randn(4, last).bfloat16()
    yield torch.randn(1, 5), torch.randn(4, 5), None, torch.randn(1, last)
    yield torch.randn(5).double(), torch.randn(5).double(), None, torch.randn(last).double()
    if name != "cosine_embedding_loss":
        yield torch.randn(2, 3, 5), torch.randn(2, 3, 10)[..., ::2], None, torch.randn(2, 3, 5)


def softmax_operands(name):
    """(input, target, weight, none): rows, positions, classes that lie apart, and probabilities."""
    yield torch.randn(4, 5), torch.tensor([0, 4, 1, 1]), None, None
    yield torch.randn(5, 4).T, torch.tensor([3, 2, 0, 4]), torch.rand(5), None
    yield torch.randn(2, 3, 2, 2, dtype=torch.bfloat16), torch.randint(3, (2, 2, 2)), None, None
    channels_last = torch.randn(2, 3, 2, 2).to(memory_format=torch.channels_last)
    yield channels_last, torch.randint(3, (2, 2, 2), dtype=torch.uint8), torch.rand(3), None
    yield torch.randn(3, dtype=torch.float64), torch.tensor(2), None, None
    if name == "cross_entropy":
        yield torch.randn(4, 5), torch.randn(4, 5).softmax(1), torch.rand(5), None
        yield torch.randn(2, 3, 4), torch.randn(2, 4, 3).softmax(2).transpose(1, 2), None, None


def class_margin_operands(name):
    """(input, target, weight, none): rows and one row, of classes side by side and apart."""
    several = name == "multilabel_margin_loss"
    rows = torch.tensor([[0, 3, -1, 0, 0]] * 4) if several else torch.tensor([0, 4, 1, 1])
    yield torch.randn(4, 5), rows, None, None
    yield torch.randn(5, 4).T, rows, None if several else torch.rand(5), None
    yield torch.randn(4, 10, dtype=torch.bfloat16)[:, ::2], rows, None, None
    yield torch.randn(5, dtype=torch.float64), rows[0], None, None


OPERANDS = {
    "pointwise": pointwise_operands,
    "vectors": rows_operands,
    "softmax": softmax_operands,
    "class_margin": class_margin_operands,
}


def options_of(name, target):
    if LOSSES[name].family == "softmax":
        # Probabilities take no ignored class.
        smoothing = 0.1 if name == "cross_entropy" else 0.0
        return (-100 if target.is_floating_point() else 1), smoothing, [], None, None
    parameters = tuple(map(float, LOSSES[name].parameters.values()))
    return (parameters, None, None) if LOSSES[name].family == "pointwise" else (parameters,)


def calls_of(name):
    """(operands, options, reduction, gradients): each reduction with every set of gradients."""
    torch.manual_seed(0)
    loss = LOSSES[name]
    reductions = range(4 if name == "kl_div" else 3)  # none, mean, sum, batchmean
    for operands in OPERANDS[loss.family](name):
        possible = [1 << i for i, x in enumerate(operands[:2]) if x.is_floating_point()]
        possible += [4] if operands[3] is not None else []
        bits = [bit for bit in possible if bit & loss.differentiable]
        masks = [sum(some) for n in range(len(bits) + 1) for some in itertools.combinations(bits, n)]
        yield from itertools.product([operands], [options_of(name, operands[1])], reductions, masks)


def check(operator, arguments, dynamic):
    """`dynamic` traces the operator, which takes long."""
    utils = ["test_schema", "test_faketensor"] + ["test_aot_dispatch_dynamic"] * dynamic
    results = torch.library.opcheck(operator, arguments, test_utils=utils)
    assert set(results.values()) == {"SUCCESS"}


def dense_copy(tensor):
    """What may be written over: the same layout, if that is dense."""
    return tensor.clone(memory_format=torch.preserve_format)


def is_full(operands):
    shapes = [x.shape for x in operands if x is not None]
    return operands[0].shape == torch.broadcast_shapes(*shapes)


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
            if loss_row.has_statistics:
                check(operators.forward, (*operands, *tail[:-1], wanted | STATISTICS), False)
            continue
        if kind == "forward_inplace":
            # Not compiled, and not tagged as fit for it: it changes an argument and returns tensors.
            assert torch.Tag.pt2_compliant_tag not in operators.forward_inplace.tags
            if loss_row.family not in ("pointwise", "vectors") or is_full(operands):
                check(operators.forward_inplace, (dense_copy(operands[0]), *operands[1:], *tail), False)
            continue
        bits = STATISTICS if loss_row.has_statistics else 0
        loss, *outputs = operators.forward(*operands, *options, reduction, None, bits)
        if loss_row.has_statistics and reduction:  # the backward takes them, or computes them again
            operands = (*operands[:3], outputs[0])
        arguments = (torch.full_like(loss, 0.5), *operands, *options, reduction, wanted)
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

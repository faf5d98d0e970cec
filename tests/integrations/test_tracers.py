"""Programs that trace, compile or override calls of torch's losses find this package's to behave alike."""

from __future__ import annotations

import io
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

import fused_losses
import fused_losses.functional as L
from fused_losses.registry import TWINS

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")

TORCHS = {name: getattr(F, name) for name in TWINS}
WHERE = ("alone", "under a patch")
FUNCTIONS = pytest.mark.parametrize("name", TWINS)

# Torch's own functions do not compile: one has a comprehension, the other arguments by keyword alone.
NOT_SCRIPTABLE = ("gaussian_nll_loss", "triplet_margin_with_distance_loss")


@pytest.fixture(params=WHERE)
def function(request):
    """By name, a loss of this package: its own name for it, or torch's while a patch is in effect."""
    if request.param == "alone":
        yield lambda name: getattr(L, name)
    else:
        with fused_losses.patch():
            yield lambda name: getattr(F, name)


@pytest.fixture(params=("this package's", "torch's under a patch"))
def module(request):
    """By name, a module of a loss."""
    if request.param == "this package's":
        yield lambda name, **options: getattr(fused_losses, TWINS[name].module)(**options)
    else:
        with fused_losses.patch():
            yield lambda name, **options: getattr(nn, TWINS[name].module)(**options)


def operands_of(name: str) -> list[torch.Tensor]:
    return list(TWINS[name].inputs((4, 5), torch.Generator().manual_seed(0)))


class Model(nn.Module):
    """A loss that is part of a model, of two operands or three."""

    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def forward(self, a, b):
        return self.loss(a / 2, b)


class ModelOfThree(Model):
    def forward(self, a, b, c):
        return self.loss(a / 2, b, c)


def model_of(loss, operands):
    return (Model if len(operands) == 2 else ModelOfThree)(loss)


def called_with(function, count):
    """A plain Python function of that many arguments, as tracers want it."""
    if count == 2:
        return lambda a, b: function(a / 2, b)
    return lambda a, b, c: function(a / 2, b, c)


def saved_and_loaded(scripted):
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    return torch.jit.load(file)


def results(function, operands):
    """The loss and its gradient with respect to the first operand."""
    first = operands[0].clone().requires_grad_()
    loss = function(first, *operands[1:])
    (gradient,) = torch.autograd.grad(loss, first)
    return loss.detach(), gradient


BEYOND = {
    "z_loss": lambda x, t: L.cross_entropy(x, t, z_loss=0.1, softcap=5.0),
    "lse": lambda x, t: L.cross_entropy(x, t, return_lse=True).lse.sum(),
    "normalizer": lambda x, t: L.cross_entropy(x, t, normalizer=x.detach().abs().sum()),
    "ignored probabilities": lambda x, t: L.binary_cross_entropy(
        x.sigmoid(), x.gt(0).float(), ignore_index=0
    ),
    "ignored logits": lambda x, t: L.binary_cross_entropy_with_logits(x, x.gt(0).float(), ignore_index=0),
    "head": lambda x, t: L.linear_cross_entropy(x, x, t, label_smoothing=0.1),
    "head with z_loss": lambda x, t: L.linear_cross_entropy(x, x, t, z_loss=0.1),
    "any head": lambda x, t: L.linear_loss(x, x, t, "multi_margin_loss"),
    "number": lambda x, t: L.gaussian_nll_loss(x, x + 1, 0.5),
}


@FUNCTIONS
def test_scripted_modules(name, module):
    operands = operands_of(name)
    if name in NOT_SCRIPTABLE:
        for loss in (module(name), model_of(module(name), operands)):
            with pytest.raises((torch.jit.frontend.NotSupportedError, RuntimeError)):
                torch.jit.script(loss)
        return
    expected = results(model_of(getattr(nn, TWINS[name].module)(), operands), operands)
    model = model_of(module(name), operands)
    scripted = saved_and_loaded(torch.jit.script(model))
    torch.testing.assert_close(results(scripted, operands), expected)
    torch.testing.assert_close(results(model, operands), expected)  # which is still there
    torch.jit.script(module(name))


def test_scripted_modules_with_weights_and_subclasses():
    class Subclass(fused_losses.CrossEntropyLoss):
        pass

    operands = operands_of("cross_entropy")
    options = {"weight": torch.arange(1.0, 6.0), "label_smoothing": 0.1}
    expected = nn.CrossEntropyLoss(**options)(*operands)
    for kind in (fused_losses.CrossEntropyLoss, Subclass):
        torch.testing.assert_close(torch.jit.script(kind(**options))(*operands), expected)


def test_options_that_torch_lacks_are_not_lost_in_scripts():
    for kind, option in (("CrossEntropyLoss", {"z_loss": 0.1}), ("BCELoss", {"ignore_index": 0})):
        with pytest.raises(RuntimeError, match=f"cannot compile {kind} with {next(iter(option))}="):
            torch.jit.script(nn.Sequential(getattr(fused_losses, kind)(**option)))
    torch.jit.script(fused_losses.CrossEntropyLoss(backward="recompute"))


@FUNCTIONS
def test_scripted_functions(name, function):
    operands = operands_of(name)
    if name in NOT_SCRIPTABLE:
        with pytest.raises((torch.jit.frontend.NotSupportedError, RuntimeError)):
            torch.jit.script(function(name))
        return
    scripted = torch.jit.script(function(name))
    torch.testing.assert_close(results(scripted, operands), results(TORCHS[name], operands))


def test_a_script_of_a_users(function):
    """The name F stands for what is in the fixture's place: TorchScript looks it up where the text is."""

    def loss(x, t):
        return chosen(x, t, reduction="sum") + 1

    chosen = function("mse_loss")
    x, t = operands_of("mse_loss")
    torch.testing.assert_close(torch.jit.script(loss)(x, t), TORCHS["mse_loss"](x, t, reduction="sum") + 1)


@FUNCTIONS
def test_traced_functions(name, function):
    operands = operands_of(name)
    operands[0].requires_grad_()
    call = called_with(function(name), len(operands))
    traced = saved_and_loaded(torch.jit.trace(call, tuple(operands)))
    others = [x.detach().flip(0) for x in operands]
    torch.testing.assert_close(results(traced, others), results(call, others))
    assert "fused_losses" not in traced.code and "PythonOp" not in str(traced.graph)


@pytest.mark.parametrize("call", BEYOND.values(), ids=BEYOND)
def test_traces_of_options_that_torch_lacks(call):
    x, t = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3])
    traced = saved_and_loaded(torch.jit.trace(call, (x.requires_grad_(), t)))
    others = x.detach().flip(0) * 2, t
    torch.testing.assert_close(results(traced, others), results(call, others))


@FUNCTIONS
def test_traced_modules(name, module):
    operands = operands_of(name)
    operands[0].requires_grad_()
    model = model_of(module(name), operands)
    traced = saved_and_loaded(torch.jit.trace(model, tuple(operands)))
    torch.testing.assert_close(results(traced, operands), results(model, operands))


@FUNCTIONS
def test_symbolic_traces_of_functions(name, function):
    """torch.fx notes torch's function, and no other."""
    operands = operands_of(name)
    graph = torch.fx.symbolic_trace(called_with(function(name), len(operands)))
    targets = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert targets[-1] is TORCHS[name] and len(targets) == 2  # the first is the quotient
    restored = pickle.loads(pickle.dumps(graph))
    expected = results(called_with(TORCHS[name], len(operands)), operands)
    torch.testing.assert_close(results(graph, operands), expected)
    torch.testing.assert_close(results(restored, operands), expected)


@FUNCTIONS
def test_symbolic_traces_of_modules(name, module):
    operands = operands_of(name)
    model = model_of(module(name), operands)
    graph = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(results(graph, operands), results(model, operands))


def test_symbolic_traces_under_autocast():
    for name in ("huber_loss", "binary_cross_entropy_with_logits"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            torch.fx.symbolic_trace(called_with(getattr(L, name), 2))


@pytest.mark.parametrize("call", BEYOND.values(), ids=BEYOND)
def test_options_that_torch_lacks_are_kept_in_symbolic_traces(call):
    x, t = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3])
    graph = torch.fx.symbolic_trace(call)
    torch.testing.assert_close(results(graph, (x, t)), results(call, (x, t)))
    torch.testing.assert_close(results(pickle.loads(pickle.dumps(graph)), (x, t)), results(call, (x, t)))


class Seen(TorchFunctionMode):
    """A mode that notes which functions are called, and calls them."""

    def __init__(self):
        super().__init__()
        self.functions = []

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        self.functions.append(function)
        return function(*arguments, **(keywords or {}))


@FUNCTIONS
def test_modes_see_torchs_function(name, function):
    operands = operands_of(name)
    call = function(name)
    expected = TORCHS[name](*operands)
    with Seen() as seen:
        result = call(*operands)
    assert seen.functions == [TORCHS[name]]
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("call", BEYOND.values(), ids=BEYOND)
def test_modes_see_options_that_torch_lacks(call):
    x, t = torch.randn(4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3])
    expected = call(x, t)
    with Seen() as seen:
        result = call(x, t)
    losses = {getattr(L, name) for name in (*TWINS, "linear_cross_entropy", "linear_loss")}
    losses |= {getattr(F, name, None) for name in ("linear_cross_entropy", "gaussian_nll_loss")}
    assert sum(any(function is loss for loss in losses) for function in seen.functions) == 1
    torch.testing.assert_close(result, expected)


@FUNCTIONS
def test_a_default_device_changes_nothing(name):
    operands = operands_of(name)
    with torch.device("cpu"):
        assert "torch's own" not in fused_losses.explain(getattr(L, name), *operands)


def test_make_fx_traces_the_kernels():
    from torch.fx.experimental.proxy_tensor import make_fx

    x, t = operands_of("mse_loss")
    graph = make_fx(lambda x, t: L.mse_loss(x, t))(x, t)
    assert any(node.target is torch.ops.fused_losses.mse_loss.default for node in graph.graph.nodes)
    torch.testing.assert_close(graph(x, t), TORCHS["mse_loss"](x, t))


def test_exported_programs_need_no_kernels():
    x, t = operands_of("cross_entropy")
    program = torch.export.export(Model(fused_losses.CrossEntropyLoss()), (x, t), strict=False)
    assert "fused_losses" not in program.graph_module.code
    torch.testing.assert_close(program.module()(x, t), TORCHS["cross_entropy"](x / 2, t))


def test_a_mode_may_answer(function):
    class Answers(TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), keywords=None):
            return "an answer" if function is TORCHS["mse_loss"] else function(*arguments, **(keywords or {}))

    call = function("mse_loss")
    with Answers():
        assert call(torch.ones(2), torch.ones(2)) == "an answer"


HANDLERS = {}


class Handled(torch.Tensor):
    """A subclass as torch's guide to extending it has them: a table of handlers by torch's functions."""

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), keywords=None):
        if function in HANDLERS:
            return HANDLERS[function](*arguments, **(keywords or {}))
        return super().__torch_function__(function, types, arguments, keywords or {})


class NoTensor:
    """What is no tensor, but takes part in calls."""

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), keywords=None):
        return function, len(arguments)


HANDLERS |= {function: lambda *_, name=name, **__: name for name, function in TORCHS.items()}


@FUNCTIONS
def test_operands_may_answer(name, function):
    operands = operands_of(name)
    call = function(name)
    for place in range(len(operands)):
        handled = [x.as_subclass(Handled) if i == place else x for i, x in enumerate(operands)]
        assert call(*handled) == name
        foreign = [NoTensor() if i == place else x for i, x in enumerate(operands)]
        assert call(*foreign)[0] is TORCHS[name]


@FUNCTIONS
def test_operands_that_only_look_on_change_nothing(name, function):
    operands = operands_of(name)
    expected = TORCHS[name](*operands)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = function(name)(*(x.as_subclass(torch.Tensor) for x in operands))
        answered = function(name)(operands[0].as_subclass(LooksOn), *operands[1:])
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(answered.as_subclass(torch.Tensor), expected)


class LooksOn(torch.Tensor):
    pass


class Passing(TorchFunctionMode):
    """A mode that changes nothing, nor itself, which torch.compile of torch 2.11 does not bear."""

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        return function(*arguments, **(keywords or {}))


def test_compiled_code_under_a_mode():
    x, t = operands_of("cross_entropy")
    with torch.device("cpu"):
        compiled = torch.compile(lambda x, t: L.cross_entropy(x, t), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x, t), TORCHS["cross_entropy"](x, t))
    with Passing():
        compiled = torch.compile(lambda x, t: L.cross_entropy(x, t), fullgraph=True, backend="aot_eager")
        result = compiled(x, t)
    torch.testing.assert_close(result, TORCHS["cross_entropy"](x, t))


def test_strict_mode_lets_tracers_be(by_kernels_only):
    operands = tuple(operands_of("mse_loss"))
    torch.jit.trace(L.mse_loss, operands)
    with Seen():
        L.mse_loss(*operands)

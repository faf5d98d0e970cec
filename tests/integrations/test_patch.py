"""`patch` puts our losses in torch's place and torch's back; `replace` turns a model's own into ours."""

from __future__ import annotations

import copy
import io
import logging
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fused_losses
import fused_losses.functional as L
from fused_losses.registry import LINEAR, TWINS

NAMES = (*TWINS, *(name for name in LINEAR.values() if hasattr(F, name)))
TORCHS_FUNCTIONS = {name: getattr(F, name) for name in NAMES}


@pytest.fixture(autouse=True)
def nothing_stays_patched():
    yield
    assert {name: getattr(F, name) for name in TORCHS_FUNCTIONS} == TORCHS_FUNCTIONS
    assert {function.__module__ for function in TORCHS_FUNCTIONS.values()} == {"torch.nn.functional"}


def logits_and_classes():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 5, generator=generator, requires_grad=True)
    return logits, torch.randint(5, (6,), generator=generator)


class Subclass(torch.Tensor):
    pass


def inputs(loss):
    return loss.inputs((4, 8), torch.Generator().manual_seed(0))


def is_fused(loss: torch.Tensor) -> bool:
    return type(loss.grad_fn).__name__ == "LossFunctionBackward"


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_is_replaced_and_put_back(name):
    with fused_losses.patch() as patched:
        assert getattr(F, name) is getattr(L, name)
        assert f"torch.nn.functional.{name}" in patched.replaced


def test_nothing_but_losses_is_replaced():
    places = (nn, nn.modules, nn.modules.loss, F)
    before = [dict(vars(place)) for place in places]
    with fused_losses.patch():
        during = [dict(vars(place)) for place in places]
    changed = [
        {name for name in old if name != "__warningregistry__" and old[name] is not new.get(name)}
        for old, new in zip(before, during, strict=True)
    ]
    assert changed == [set(), set(), set(), set(NAMES)]


@pytest.mark.parametrize("loss", TWINS.values(), ids=TWINS)
def test_torchs_functions_are_reached_by_ours_alone(loss):
    """Of a subclass of Tensor, ours calls torch's, which must not call ours again without end."""
    operands = [x.as_subclass(Subclass) for x in inputs(loss)]
    with fused_losses.patch():
        assert "torch's own function" in fused_losses.explain(getattr(F, loss.name), *operands)


@pytest.mark.parametrize("loss", TWINS.values(), ids=TWINS)
def test_torchs_modules_call_ours(loss):
    """Those made before, those made under the patch, and subclasses."""
    torchs = getattr(nn, loss.module)
    subclass = type("Subclass", (torchs,), {})
    operands = [x.double() if x.is_floating_point() else x for x in inputs(loss)]
    operands[0].requires_grad_()
    before = [torchs(), subclass()]
    expected = before[0](*operands)
    with fused_losses.patch():
        for module in (*before, torchs(), subclass()):
            result = module(*operands)
            assert is_fused(result) and isinstance(module, torchs)
            torch.testing.assert_close(result, expected)
    assert not is_fused(before[0](*operands))


@pytest.mark.skipif("linear_cross_entropy" not in NAMES, reason="torch 2.11 has no linear_cross_entropy")
def test_the_linear_head_of_torch_calls_ours():
    module = nn.LinearCrossEntropyLoss(8, 5)
    operands = torch.randn(6, 8), torch.randint(5, (6,))
    with fused_losses.patch():
        assert fused_losses.explain(module, *operands).startswith("linear cross_entropy: chunks")


class Meaning:
    """Subclasses of torch's losses, and of this package's, whose attributes have names of our options."""

    @staticmethod
    def scaled(base):
        class Scaled(base):
            def __init__(self):
                super().__init__()
                self.logit_scale, self.entropy, self.softcap, self.z_loss = 10.0, "high", -1, None

            def forward(self, input, target):
                return super().forward(input * self.logit_scale, target)

        return Scaled()

    @staticmethod
    def learned(base):
        class Learned(base):
            def __init__(self):
                super().__init__()
                self.logit_scale, self.z_loss = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.ones(3))
                self.register_buffer("softcap", torch.ones(4))

            def forward(self, input, target):
                return super().forward(input * self.logit_scale, target)

        return Learned()

    @staticmethod
    def with_methods(base):
        class Methods(base):
            def backward(self):
                return "the user's"

            def return_lse(self):
                return "the user's"

        module = Methods()
        assert module.backward() == module.return_lse() == "the user's"
        return module

    @staticmethod
    def by_name(base):
        class ByName(base):
            def __init__(self):
                nn.CrossEntropyLoss.__init__(self)  # not by super()

        return ByName()


@pytest.mark.parametrize("kind", ("scaled", "learned", "with_methods", "by_name"))
def test_attributes_mean_what_they_mean_to_the_user(kind):
    logits, classes = logits_and_classes()
    expected = getattr(Meaning, kind)(nn.CrossEntropyLoss)(logits, classes)
    result = getattr(Meaning, kind)(fused_losses.CrossEntropyLoss)(logits, classes)
    assert is_fused(result)
    torch.testing.assert_close(result, expected)
    with fused_losses.patch():
        result = getattr(Meaning, kind)(nn.CrossEntropyLoss)(logits, classes)
        assert is_fused(result)
    torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("name", ("BCELoss", "BCEWithLogitsLoss"))
def test_an_ignore_index_of_a_subclass_is_its_own(name):
    def loss_of(base):
        class OneLabelLeftOut(base):
            def __init__(self, ignore_index):
                super().__init__()
                self.ignore_index = ignore_index

            def forward(self, input, target):
                kept = [c for c in range(input.shape[1]) if c != self.ignore_index]
                return super().forward(input[:, kept], target[:, kept])

        return OneLabelLeftOut(0)

    generator = torch.Generator().manual_seed(0)
    operands = torch.rand(6, 5, generator=generator), torch.rand(6, 5, generator=generator).round()
    expected = loss_of(getattr(nn, name))(*operands)
    torch.testing.assert_close(loss_of(getattr(fused_losses, name))(*operands), expected)
    with fused_losses.patch():
        torch.testing.assert_close(loss_of(getattr(nn, name))(*operands), expected)


def test_classes_stay_what_programs_know():
    """Registries, default arguments and exact-class look-ups of code that was there before the patch."""
    registry = {nn.CrossEntropyLoss: "classes", nn.MSELoss: "numbers"}

    def default(kind=nn.NLLLoss):
        return kind()

    class Halved(nn.CrossEntropyLoss):
        def forward(self, input, target):
            return super().forward(input, target) / 2

    logits, classes = logits_and_classes()
    expected = Halved()(logits, classes)
    with fused_losses.patch():
        assert registry[type(nn.CrossEntropyLoss())] == "classes"
        assert type(default()) is nn.NLLLoss
        result = Halved()(logits, classes)
    torch.testing.assert_close(result, expected)


def test_double_backward_under_patch():
    logits, classes = logits_and_classes()
    logits = logits.detach().double().requires_grad_()
    with fused_losses.patch():
        assert torch.autograd.gradgradcheck(lambda x: F.cross_entropy(x, classes), logits)


def test_names():
    with fused_losses.patch(["mse_loss"]) as patched:
        assert patched.replaced == ("torch.nn.functional.mse_loss",)
        assert F.mse_loss is L.mse_loss and F.l1_loss is TORCHS_FUNCTIONS["l1_loss"]
        assert repr(patched) == "<Patch of 1 names (torch.nn.functional.mse_loss), active>"
    assert repr(patched).endswith("undone>")
    with fused_losses.patch("mse_loss") as patched:
        assert len(patched.replaced) == 1
    for unknown in ("MSELoss", "ctc_loss"):  # a class, and one that we only pass on
        with pytest.raises(ValueError, match=f"no such loss: '{unknown}'; there are cross_entropy"):
            fused_losses.patch(["mse_loss", unknown])


def test_says_what_it_does(caplog, capsys):
    caplog.set_level(logging.INFO, "fused_losses")
    fused_losses.patch(["l1_loss"]).undo()
    assert caplog.messages == [
        "replaced torch.nn.functional.l1_loss",
        "restored torch.nn.functional.l1_loss",
    ]
    assert capsys.readouterr() == ("", "")


def test_plain_call_and_undo_twice():
    patched = fused_losses.patch()
    assert F.cross_entropy is L.cross_entropy
    patched.undo()
    again = fused_losses.patch()
    patched.undo()
    assert F.cross_entropy is L.cross_entropy
    again.undo()


def test_an_exception_undoes():
    with pytest.raises(ZeroDivisionError), fused_losses.patch():
        _ = 1 / 0


@pytest.mark.parametrize("outer_first", [False, True])
def test_nested(outer_first):
    outer, inner = fused_losses.patch(), fused_losses.patch(["l1_loss"])
    first, last = (outer, inner) if outer_first else (inner, outer)
    first.undo()
    assert F.l1_loss is L.l1_loss
    assert (F.mse_loss is L.mse_loss) == (not outer_first)
    last.undo()
    assert F.l1_loss is TORCHS_FUNCTIONS["l1_loss"]


def test_someone_elses_patch(monkeypatch):
    def theirs(*arguments, **keywords):
        raise AssertionError

    with monkeypatch.context() as before:
        before.setattr(F, "l1_loss", theirs)
        with fused_losses.patch():
            assert F.l1_loss is L.l1_loss
            F.l1_loss(torch.ones(2, device="meta"), torch.ones(2, device="meta"))
        assert F.l1_loss is theirs

    patched = fused_losses.patch()
    with monkeypatch.context() as within:
        within.setattr(F, "l1_loss", theirs)
        for attempt in (patched.undo, fused_losses.patch):
            with pytest.raises(RuntimeError, match=r"functional\.l1_loss has been replaced again"):
                attempt()
        assert F.mse_loss is L.mse_loss  # nothing is done by half
        fused_losses.patch(["mse_loss"]).undo()
    patched.undo()


class HoldsAFunction(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function


def test_pickles():
    torchs = nn.CrossEntropyLoss(torch.arange(5.0), label_smoothing=0.1)
    ours = fused_losses.CrossEntropyLoss(torch.arange(5.0), label_smoothing=0.1, z_loss=0.5)
    stored = pickle.dumps(torchs)
    with fused_losses.patch():
        assert pickle.dumps(torchs) == stored and type(pickle.loads(stored)) is nn.CrossEntropyLoss
        assert type(copy.deepcopy(torchs)) is nn.CrossEntropyLoss
        made = pickle.dumps(nn.Sequential(nn.CrossEntropyLoss(label_smoothing=0.1)))
        pickled = pickle.dumps(ours)
    assert type(pickle.loads(made)[0]) is nn.CrossEntropyLoss
    loaded = pickle.loads(pickled)
    assert type(loaded) is fused_losses.CrossEntropyLoss
    assert (loaded.label_smoothing, loaded.fused_options["z_loss"]) == (0.1, 0.5)
    assert torch.equal(loaded.weight, torch.arange(5.0))


@pytest.mark.parametrize("name", NAMES)
def test_functions_held_from_before_are_pickled(name):
    torchs = getattr(F, name)
    stored = pickle.dumps(torchs)
    with fused_losses.patch():
        held = pickle.dumps(torchs)
        file = io.BytesIO()
        torch.save(HoldsAFunction(torchs), file)
        ours = pickle.dumps(getattr(F, name))
        assert pickle.loads(held) is torchs and pickle.loads(stored) is getattr(L, name)
    file.seek(0)
    assert torch.load(file, weights_only=False).function is torchs
    assert pickle.loads(held) is torchs and pickle.loads(ours) is getattr(L, name)
    assert pickle.dumps(torchs) == stored


def test_functions_that_were_imported_before_stay_torchs():
    cross_entropy = F.cross_entropy
    with fused_losses.patch():
        assert not is_fused(cross_entropy(*logits_and_classes()))


COMPILED = """
import torch, torch.nn.functional as F, fused_losses

def backend(graph, inputs):
    graphs.append(str(graph.graph))
    return graph

@torch.compile(fullgraph=True, backend=backend)
def loss(x, t):
    return F.cross_entropy(x, t)

graphs = []
x, t = torch.randn(8, 5, requires_grad=True), torch.randint(5, (8,))
for patched in {order}:
    if patched:
        with fused_losses.patch():
            result = loss(x, t)
    else:
        result = loss(x, t)
    torch.testing.assert_close(result, F.cross_entropy(x, t))
    # Ours is a function of autograd; torch's is one node.
    assert ("autograd_function_apply" in graphs.pop()) == patched
"""


@pytest.mark.parametrize("order", [(False, True), (True, False)], ids=["before", "first"])
def test_compiled_functions_follow(order):
    """A new process each: torch.compile lists torch's functions when it is first imported."""
    command = [sys.executable, "-c", COMPILED.format(order=order)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_compiled_by_inductor():
    logits, classes = logits_and_classes()
    expected = F.cross_entropy(logits, classes)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    with fused_losses.patch():
        compiled = torch.compile(lambda x, t: nn.CrossEntropyLoss()(x, t), fullgraph=True)
        loss = compiled(logits, classes)
        (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, expected_gradient)


def test_replace_in_a_model(caplog):
    class Custom(nn.MSELoss):
        pass

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.losses = nn.ModuleDict(
                {"a": nn.CrossEntropyLoss(torch.rand(5)), "b": nn.BCEWithLogitsLoss()}
            )
            self.custom, self.kept, self.ctc = Custom(), nn.Linear(2, 2), nn.CTCLoss()

    model = Model().eval()
    cross_entropy, calls = model.losses["a"], []
    cross_entropy.register_forward_hook(lambda *_: calls.append("hook"))
    cross_entropy.note, cross_entropy.reduction = "kept", "sum"
    weight, state = cross_entropy.weight, list(model.state_dict())
    logits, classes = logits_and_classes()
    expected = cross_entropy(logits, classes)

    caplog.set_level(logging.INFO, "fused_losses")
    assert fused_losses.replace(model, backward="recompute") is model
    assert caplog.messages == [
        "replaced losses.a (CrossEntropyLoss)",
        "replaced losses.b (BCEWithLogitsLoss)",
    ]
    assert model.losses["a"] is cross_entropy and type(cross_entropy) is fused_losses.CrossEntropyLoss
    assert type(model.losses["b"]) is fused_losses.BCEWithLogitsLoss
    assert (type(model.custom), type(model.kept), type(model.ctc)) == (Custom, nn.Linear, nn.CTCLoss)
    assert cross_entropy.weight is weight and list(model.state_dict()) == state
    assert (cross_entropy.note, cross_entropy.training) == ("kept", False)
    assert cross_entropy.fused_options["backward"] == "recompute"
    loss = cross_entropy(logits, classes)
    assert is_fused(loss) and calls == ["hook", "hook"]
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("loss", TWINS.values(), ids=TWINS)
def test_replace_a_loss(loss):
    module = getattr(nn, loss.module)(reduction="sum")
    operands = inputs(loss)
    expected = module(*operands)
    operands[0].requires_grad_()
    assert fused_losses.replace(module) is module
    assert type(module) is getattr(fused_losses, loss.module)
    result = module(*operands)
    assert is_fused(result)
    torch.testing.assert_close(result, expected)


def test_replace_takes_no_attribute_for_an_option():
    logits, classes = logits_and_classes()
    module = nn.CrossEntropyLoss()
    module.logit_scale, module.z_loss, module.backward = 7.0, "any", "eager"
    expected = module(logits, classes)
    result = fused_losses.replace(module)(logits, classes)
    assert is_fused(result) and module.logit_scale == 7.0
    torch.testing.assert_close(result, expected)


def test_replace_refuses_an_unknown_strategy():
    module = nn.L1Loss()
    with pytest.raises(ValueError, match="backward must be"):
        fused_losses.replace(module, backward="eager")
    assert type(module) is nn.L1Loss


@pytest.mark.parametrize("backward", (None, "recompute"))
def test_options_of_a_replaced_module_are_its_own(backward):
    """As those of a module that the constructor has made, they can be set, and no other module has them."""
    module, other = (fused_losses.replace(nn.MSELoss(), backward=backward) for _ in range(2))
    module.fused_options["backward"] = "inplace"
    assert other.fused_options["backward"] == (backward or "fused")
    assert fused_losses.MSELoss().fused_options["backward"] == "fused"

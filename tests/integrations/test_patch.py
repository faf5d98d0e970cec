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
from fused_losses.registry import TWINS

TORCHS_FUNCTIONS = {name: getattr(F, name) for name in TWINS}
TORCHS_MODULES = {loss.module: getattr(nn, loss.module) for loss in TWINS.values()}


@pytest.fixture(autouse=True)
def nothing_stays_patched():
    yield
    assert {name: getattr(F, name) for name in TWINS} == TORCHS_FUNCTIONS
    for place in (nn, nn.modules, nn.modules.loss):
        assert {name: getattr(place, name) for name in TORCHS_MODULES} == TORCHS_MODULES


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


@pytest.mark.parametrize("loss", TWINS.values(), ids=TWINS)
def test_every_loss_is_replaced_and_put_back(loss):
    with fused_losses.patch() as patched:
        assert getattr(F, loss.name) is getattr(L, loss.name)
        for place in (nn, nn.modules, nn.modules.loss):
            assert getattr(place, loss.module) is getattr(fused_losses, loss.module)
        assert f"torch.nn.functional.{loss.name}" in patched.replaced
        assert f"torch.nn.{loss.module}" in patched.replaced


@pytest.mark.parametrize("loss", TWINS.values(), ids=TWINS)
def test_torchs_functions_are_reached_by_ours_alone(loss):
    """Of a subclass of Tensor, ours calls torch's, which must not call ours again without end."""
    operands = [x.as_subclass(Subclass) for x in inputs(loss)]
    with fused_losses.patch():
        assert "torch's own function" in fused_losses.explain(getattr(F, loss.name), *operands)


@pytest.mark.parametrize("loss", TWINS.values(), ids=TWINS)
def test_modules_made_before_are_served(loss):
    before = getattr(nn, loss.module)()
    operands = [x.double() if x.is_floating_point() else x for x in inputs(loss)]
    operands[0].requires_grad_()
    expected = before(*operands)
    with fused_losses.patch():
        fused = before(*operands)
        assert is_fused(fused) and is_fused(getattr(nn, loss.module)()(*operands))
    torch.testing.assert_close(fused, expected)
    assert not is_fused(before(*operands))


def test_double_backward_under_patch():
    logits, classes = logits_and_classes()
    logits = logits.detach().double().requires_grad_()
    with fused_losses.patch():
        assert torch.autograd.gradgradcheck(lambda x: F.cross_entropy(x, classes), logits)


def test_names():
    with fused_losses.patch(["mse_loss"]) as patched:
        assert patched.replaced == ("torch.nn.functional.mse_loss", "torch.nn.MSELoss")
        assert F.mse_loss is L.mse_loss and F.l1_loss is TORCHS_FUNCTIONS["l1_loss"]
        assert repr(patched).startswith("<Patch of 2 names (torch.nn.functional.mse_loss, torch.nn.MSELoss)")
    assert repr(patched).endswith("undone>")
    with fused_losses.patch("mse_loss") as patched:
        assert len(patched.replaced) == 2
    for unknown in ("MSELoss", "ctc_loss"):  # a class, and one that we only pass on
        with pytest.raises(ValueError, match=f"no such loss: '{unknown}'; there are cross_entropy"):
            fused_losses.patch(["mse_loss", unknown])


def test_says_what_it_does(caplog, capsys):
    caplog.set_level(logging.INFO, "fused_losses")
    fused_losses.patch(["l1_loss"]).undo()
    assert caplog.messages == [
        "replaced torch.nn.functional.l1_loss, torch.nn.L1Loss",
        "restored torch.nn.functional.l1_loss, torch.nn.L1Loss",
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


def test_classes():
    torchs = nn.CrossEntropyLoss
    with fused_losses.patch():
        made = nn.CrossEntropyLoss(torch.ones(5))
        from torch.nn.modules.loss import CrossEntropyLoss

        assert type(made) is CrossEntropyLoss is fused_losses.CrossEntropyLoss
        assert isinstance(made, torchs)

        class Halved(nn.CrossEntropyLoss):
            def forward(self, input, target):
                return super().forward(input, target) / 2

        logits, classes = logits_and_classes()
        torch.testing.assert_close(Halved()(logits, classes), made(logits, classes) / 2)
    assert is_fused(made(logits, classes))
    assert list(made.state_dict()) == list(torchs(torch.ones(5)).state_dict()) == ["weight"]
    made.load_state_dict(torchs(torch.zeros(5)).state_dict())
    assert made.weight.count_nonzero() == 0


def test_pickles():
    torchs = nn.CrossEntropyLoss(torch.arange(5.0), label_smoothing=0.1)
    stored = pickle.dumps(torchs)
    with fused_losses.patch():
        ours = nn.CrossEntropyLoss(torch.arange(5.0), label_smoothing=0.1)
        # By name, so this is ours now.
        assert type(pickle.loads(stored)) is fused_losses.CrossEntropyLoss
        pickled, pickled_torchs = pickle.dumps(ours), pickle.dumps(nn.Sequential(torchs))
        assert type(copy.deepcopy(torchs)) is type(torchs)
        file = io.BytesIO()
        torch.save(torchs, file)
    file.seek(0)
    for loaded, kind in (
        (pickle.loads(pickled), fused_losses.CrossEntropyLoss),
        (pickle.loads(pickled_torchs)[0], nn.CrossEntropyLoss),
        (torch.load(file, weights_only=False), nn.CrossEntropyLoss),
    ):
        assert type(loaded) is kind and loaded.label_smoothing == 0.1
        assert torch.equal(loaded.weight, torch.arange(5.0))
    assert pickle.dumps(torchs) == stored


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
    assert (cross_entropy.note, cross_entropy.training, cross_entropy.backward) == (
        "kept",
        False,
        "recompute",
    )
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


def test_replace_refuses_an_unknown_strategy():
    module = nn.L1Loss()
    with pytest.raises(ValueError, match="backward must be"):
        fused_losses.replace(module, backward="eager")
    assert type(module) is nn.L1Loss

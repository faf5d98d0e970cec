"""Operands on several devices: torch's error in torch's words, or torch's value where it takes them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from kit.contract import case_of, each_loss
from torch import Tensor

import fused_losses.functional as L
from fused_losses import devices
from fused_losses.ops import OPERATORS
from fused_losses.registry import LOSSES

pytestmark = [
    pytest.mark.filterwarnings("ignore:reduction", "ignore:There is a performance drop"),
    pytest.mark.filterwarnings("ignore:Using a target size"),
]

CLASS_WEIGHTS = ("cross_entropy", "nll_loss", "multi_margin_loss", "multilabel_soft_margin_loss")
ELEMENT_WEIGHTS = ("binary_cross_entropy", "mse_loss", "l1_loss", "huber_loss")
WEIGHTS = (
    *((name, "weight", (7,)) for name in CLASS_WEIGHTS),
    *((name, "weight", (8, 7)) for name in ELEMENT_WEIGHTS),
    ("binary_cross_entropy_with_logits", "weight", (8, 7)),
    ("binary_cross_entropy_with_logits", "pos_weight", (7,)),
)


def answer(function, *arguments, **options):
    """The exception's type and words, or the result's device and dtype: a meta tensor has no values."""
    try:
        result = function(*arguments, **options)
    except Exception as error:
        return type(error), str(error)
    return result.device.type, result.dtype


@pytest.fixture(params=(False, True), ids=("unserved", "served"))
def meta_devices(request, monkeypatch):
    """The meta device stands for a GPU: for one that has no kernels, and for one that has."""
    if request.param:
        monkeypatch.setitem(devices.compiled, "meta", "those of a stand-in")


@each_loss
@pytest.mark.usefixtures("meta_devices")
@pytest.mark.parametrize("requires_grad", (False, True))
def test_each_operand_elsewhere(name, requires_grad):
    case = case_of(name, torch.float32)
    for k in range(len(case.operands)):
        for others_too in (False, True):
            operands = [x.to("meta") if (i == k) != others_too else x for i, x in enumerate(case.operands)]
            if requires_grad:
                operands[0] = operands[0].detach().requires_grad_()
            mine = answer(getattr(L, name), *operands, **case.options)
            assert mine == answer(case.torchs, *operands, **case.options)


@pytest.mark.usefixtures("meta_devices")
@pytest.mark.parametrize("name, option, shape", WEIGHTS)
def test_weights_elsewhere(name, option, shape):
    case = case_of(name, torch.float32)
    meta = [x.to("meta") for x in case.operands]
    for size in (shape, ()):
        for dtype in (torch.float32, torch.float64):
            weight = torch.rand(size, dtype=dtype)
            for operands, given in ((case.operands, weight.to("meta")), (meta, weight)):
                options = {**case.options, option: given}
                assert answer(getattr(L, name), *operands, **options) == answer(
                    case.torchs, *operands, **options
                )


@pytest.mark.usefixtures("meta_devices")
def test_a_number_on_the_cpu_is_taken_where_torch_takes_it():
    logits, target = torch.randn(8, 7, device="meta"), torch.rand(8, 7, device="meta")
    loss = L.binary_cross_entropy_with_logits(logits, target, pos_weight=torch.tensor(3.0))
    assert loss.is_meta and loss.dim() == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_number_on_the_cpu_beside_logits_on_a_gpu():
    logits, target = torch.randn(8, 7, device="cuda"), torch.rand(8, 7, device="cuda")
    results = [
        module.binary_cross_entropy_with_logits(logits, target, pos_weight=torch.tensor(3.0))
        for module in (L, F)
    ]
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    "options",
    ({"z_loss": 0.1}, {"softcap": 3.0}, {"normalizer": 5.0}, {"return_lse": True}, {"return_accuracy": True}),
    ids=lambda options: "-".join(options),
)
def test_what_torch_lacks_with_operands_elsewhere(options):
    logits, labels, weight = torch.randn(8, 7), torch.randint(0, 7, (8,)), torch.rand(7)
    for operands in (
        (logits.to("meta"), labels),
        (logits, labels.to("meta")),
        (logits, labels, weight.to("meta")),
        (logits.to("meta"), labels.to("meta"), weight),
    ):
        with pytest.raises(RuntimeError) as ours:
            L.cross_entropy(*operands, **options)
        with pytest.raises(RuntimeError) as theirs:
            F.cross_entropy(*operands)
        assert "is not on the expected device" in str(ours.value)
        assert "is not on the expected device" in str(theirs.value)


def test_ignored_elements_with_operands_elsewhere():
    x, t, weight = torch.rand(8, 7), torch.rand(8, 7), torch.rand(7, device="meta")
    for call in (
        lambda: L.binary_cross_entropy(x, t.to("meta"), ignore_index=-1.0),
        lambda: L.binary_cross_entropy_with_logits(x, t.to("meta"), ignore_index=-1.0),
        lambda: L.binary_cross_entropy_with_logits(x, t, pos_weight=weight, ignore_index=-1.0),
    ):
        with pytest.raises(RuntimeError, match="is not on the expected device"):
            call()


@pytest.mark.parametrize("backward", ("fused", "recompute"))
def test_heads_with_operands_elsewhere(backward):
    hidden, head, labels = torch.randn(8, 5), torch.randn(7, 5), torch.randint(0, 7, (8,))
    bias, weight = torch.randn(7), torch.rand(7)

    def check(*operands: Tensor, **options: Tensor) -> None:
        wanted = [x.detach().requires_grad_() if x.is_floating_point() else x for x in operands]
        theirs = answer(F.linear_cross_entropy, *wanted, **options)
        assert answer(L.linear_cross_entropy, *wanted, **options, backward=backward) == theirs

    check(hidden.to("meta"), head, labels)
    check(hidden, head, labels.to("meta"))
    check(hidden, head, labels, linear_bias=bias.to("meta"))
    check(hidden, head, labels, weight=weight.to("meta"))
    with pytest.raises(RuntimeError, match="is not on the expected device"):  # torch computes, from no memory
        L.linear_cross_entropy(hidden, head.to("meta"), labels, backward=backward)
    target = torch.rand(8, 7)
    for operands, options in (
        ((hidden.to("meta"), head, target), {}),
        ((hidden, head.to("meta"), target), {}),
        ((hidden, head, target.to("meta")), {}),
        ((hidden, head, target), {"linear_bias": bias.to("meta")}),
        ((hidden, head, target), {"pos_weight": weight.to("meta")}),
    ):
        with pytest.raises(RuntimeError, match="is not on the expected device"):
            L.linear_loss(*operands, "binary_cross_entropy_with_logits", **options, backward=backward)


CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
"""The keys of the CPU's kernels, which the dispatcher calls if any tensor is on the CPU."""

OPTIONS = {
    "pointwise": ([1.0], None, None),
    "vectors": ([1.0] * 5,),
    "softmax": (-100, 0.0, [], None, None),
    "class_margin": ([1.0, 1.0],),
}


@each_loss
def test_operators_look_at_the_device_of_each_tensor(name):
    """The dispatcher calls the kernels of one of the devices; here, those of the CPU."""
    operators, options = OPERATORS[name], OPTIONS[LOSSES[name].family]
    input, target, *third = (x.float() if x.is_floating_point() else x for x in case_of(name).operands)
    right = [input, target, torch.rand(7), *(third or [torch.rand(8, 7)])]
    upstream, into = torch.ones(()), [torch.empty(8, 7)]
    calls = [
        (operators.forward, [*right, *options, 1, None, 0]),
        (operators.forward_inplace, [*right, *options, 1, None, 1]),
        (operators.backward, [upstream, *right, *options, 1, 1]),
        (operators.backward_into, [into, False, upstream, *right, *options, 1, 1]),
    ]
    with_tensors = {
        "softmax": (*options[:3], torch.ones((), dtype=torch.float64), torch.ones(8)),
        "pointwise": (*options[:2], torch.ones((), dtype=torch.float64)),
    }.get(LOSSES[name].family)
    if with_tensors is not None:
        calls += [(operators.forward, [*right, *with_tensors, 1, None, 0])]
    for operator, arguments in calls:
        for k, argument in enumerate(arguments):
            if isinstance(argument, Tensor):
                moved = [*arguments[:k], argument.to("meta"), *arguments[k + 1 :]]
                with pytest.raises(RuntimeError, match=f"^{name}: .* must be on the same device as"):
                    operator.redispatch(CPU, *moved)


def test_scaling_looks_at_both_devices():
    with pytest.raises(RuntimeError, match="same device"):
        torch.ops.fused_losses.scale_.default.redispatch(CPU, torch.ones(3), torch.ones((), device="meta"))

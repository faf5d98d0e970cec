"""`backward="inplace"` refuses operands in the memory that the gradient goes to; empty inputs have none."""

from __future__ import annotations

import pytest
import torch
from kit.contract import case_of, each_loss, each_reduction
from kit.refusals import outcome
from torch import Tensor

import fused_losses.functional as L
from fused_losses.registry import LOSSES

pytestmark = [
    pytest.mark.cpu,  # about tensors as they are, which are moved elsewhere
    pytest.mark.filterwarnings("ignore:reduction", "ignore:There is a performance drop"),
]

OVERLAP = "unsupported operation: some elements of the input tensor and the written-to tensor refer to"
"""How torch's own error begins."""

CLASS_WEIGHTS = ("cross_entropy", "nll_loss", "multi_margin_loss")
WEIGHTED = {
    "binary_cross_entropy": ("weight",),
    "binary_cross_entropy_with_logits": ("weight", "pos_weight"),
    "mse_loss": ("weight",),
    "l1_loss": ("weight",),
    "huber_loss": ("weight",),
    "multilabel_soft_margin_loss": ("weight",),
    **dict.fromkeys(CLASS_WEIGHTS, ("weight",)),
}


def in_one_storage(input: Tensor, other: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """An input that requires grad and is no leaf, and an operand that begins `start` elements after it."""
    count = max(input.numel(), start + other.nbytes // input.itemsize + 1)
    storage = torch.zeros(count, dtype=input.dtype, requires_grad=True) * 1
    moved = storage.detach()[start : start + -(-other.nbytes // input.itemsize)].view(other.dtype)
    moved = moved[: other.numel()].view(other.shape)
    with torch.no_grad():
        storage[: input.numel()].copy_(input.flatten())
        moved.copy_(other)
    return storage[: input.numel()].view(input.shape), moved


def check_refused(name, reduction, operands, options):
    input = operands[0]
    before = input.detach().clone().view(torch.uint8)  # bytes, since labels may look like NaN
    with pytest.raises(RuntimeError, match=OVERLAP):
        loss = getattr(L, name)(*operands, **options | {"reduction": reduction}, backward="inplace")
        # Where each loss has its own upstream gradient, the backward is what would write.
        assert reduction == "none"
        torch.autograd.grad(loss.sum(), input)
    assert torch.equal(input.detach().view(torch.uint8), before)


@each_loss
@pytest.mark.parametrize("reduction", ("mean", "none"))
def test_operands_in_the_input_s_memory(name, reduction):
    case = case_of(name)
    for k in range(1, len(case.operands)):
        for start in (0, 1, case.operands[0].numel() - 1):
            operands = list(case.operands)
            operands[0], operands[k] = in_one_storage(operands[0], operands[k], start)
            check_refused(name, reduction, operands, case.options)


@each_loss
@pytest.mark.parametrize("reduction", ("mean", "none"))
def test_the_input_itself_as_another_operand(name, reduction):
    case = case_of(name)
    for k in range(1, len(case.operands)):
        if case.operands[k].shape == case.operands[0].shape and case.operands[k].is_floating_point():
            input = torch.rand(8, 7, dtype=torch.float64, requires_grad=True) * 1
            operands = [input, *case.operands[1:]]
            operands[k] = input.detach()
            check_refused(name, reduction, operands, case.options)


@pytest.mark.parametrize("reduction", ("mean", "none"))
@pytest.mark.parametrize("name, option", [(name, option) for name in WEIGHTED for option in WEIGHTED[name]])
def test_weights_in_the_input_s_memory(name, option, reduction):
    case = case_of(name)
    shape = (8, 7) if name in ("mse_loss", "l1_loss", "huber_loss") else (7,)
    input, weight = in_one_storage(case.operands[0], torch.ones(shape, dtype=torch.float64), 3)
    check_refused(name, reduction, [input, *case.operands[1:]], {**case.options, option: weight})


@pytest.mark.parametrize("dtype", (torch.int64, torch.uint8), ids=str)
def test_labels_in_the_input_s_memory(dtype):
    labels = torch.tensor([3, 0, 1, 6, 2, 1, 5, 4]).to(dtype)
    for reduction in ("mean", "none"):
        for start in (0, 20, 55):
            input, target = in_one_storage(torch.rand(8, 7, dtype=torch.float64), labels, start)
            for name in ("cross_entropy", "nll_loss"):
                check_refused(name, reduction, [input, target], {})


def test_views_that_interleave_are_refused_though_torch_lets_them_pass():
    """Two addresses cannot tell whether what reaches over the input also touches it."""
    storage = torch.rand(64, dtype=torch.float64, requires_grad=True) * 1
    input, target = storage[1:5], storage.detach()[::5][:4]  # elements 0, 5, 10 and 15
    check_refused("mse_loss", "mean", [input, target], {})


def test_neighbours_in_one_storage():
    """Operands that lie one after the other are no overlap."""
    storage = torch.rand(3, 8, 7, dtype=torch.float64, requires_grad=True) * 1
    for before, after in ((0, 1), (2, 1)):
        (right,) = torch.autograd.grad(L.mse_loss(storage[before], storage.detach()[after]), storage)
        loss = L.mse_loss(storage[before], storage.detach()[after], backward="inplace")
        torch.testing.assert_close(torch.autograd.grad(loss, storage)[0], right)


EMPTY = ((0, 5), (3, 0), (0,), (2, 0, 3), (0, 4, 3), (2, 3, 0))


def empty_operands(name, shape):
    """Operands without elements, or None where the loss has none of that shape."""
    operands = []
    for x in case_of(name).operands:
        if x.shape == (8, 7):
            sizes = shape
        elif x.shape == (8, 1):
            sizes = (*shape[:-1], 1)
        elif name in ("cross_entropy", "nll_loss"):
            sizes = shape[:1] + shape[2:] if len(shape) > 1 else ()
        else:
            sizes = shape[:-1]
        operands.append(torch.zeros(sizes, dtype=x.dtype))
    return operands


@each_loss
@each_reduction
@pytest.mark.parametrize("shape", EMPTY, ids=str)
def test_nothing_is_written_to_empty_inputs(name, reduction, shape):
    """The same loss, a gradient of no elements, or the same exception as torch's, whatever `backward` is."""

    def step(function, **options):
        leaf, *others = empty_operands(name, shape)
        leaf.requires_grad_()
        loss = function(leaf * 1, *others, **case.options | {"reduction": reduction}, **options)
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        # Torch's loss of the margins of no rows is memory that nothing was written to.
        return gradient if LOSSES[name].family == "class_margin" else (loss.detach(), gradient)

    case = case_of(name)
    right = outcome(step, (case.torchs,), {})
    for backward in ("fused", "recompute", "inplace"):
        mine = outcome(step, (getattr(L, name),), {"backward": backward})
        if isinstance(right, type) or isinstance(mine, type):
            assert mine is right, (backward, mine, right)
        else:
            torch.testing.assert_close(mine, right, equal_nan=True)

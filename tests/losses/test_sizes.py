"""Sizes at which kernels on GPUs change their ways: threads for a row, what stays on the chip."""

from __future__ import annotations

import ctypes
import os

import pytest
import torch
import torch.nn.functional as F
from kit.cases import Case, inputs_of
from kit.device import there
from test_losses import check

import fused_losses.functional as L
from fused_losses import devices
from fused_losses.registry import LOSSES

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("by_kernels_only")]

# Aligned for packs of 128 bits, and not; several rows to a warp, to a block, a block to a row; more than
# registers hold, and more than shared memory does.
SIZES = {
    "cross_entropy": (
        (70, 8),
        (40, 65),
        (5, 1000),
        (3, 2049),
        (2, 5003),
        (2, 40_960),
        (3, 5, 64, 32),
        (2, 37, 3, 5),
    ),
    "nll_loss": ((70, 8), (5, 1000), (2, 5003), (3, 5, 64, 32)),
    "multi_margin_loss": ((70, 8), (5, 1000), (2, 5003)),
    "multilabel_margin_loss": ((5, 70), (2, 1000)),
    "triplet_margin_loss": ((70, 8), (5, 1000), (3, 2049)),
    "cosine_embedding_loss": ((70, 8), (5, 1000), (3, 2049)),
}
OPTIONS = {"cross_entropy": ({}, {"label_smoothing": 0.1}), "triplet_margin_loss": ({}, {"swap": True})}

each_size = pytest.mark.parametrize(
    ("name", "shape", "options"),
    [
        pytest.param(name, shape, options, id=f"{name}-{'x'.join(map(str, shape))}{''.join(options)}")
        for name, shapes in SIZES.items()
        for shape in shapes
        for options in OPTIONS.get(name, ({},))
    ],
)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float64), ids=str)
@each_size
def test_values_and_gradients(name, shape, options, dtype):
    case = Case("", name, inputs_of(name, *shape), options).cast(dtype)
    check(case, dtype, "mean")


@each_size
def test_in_place_makes_the_same_bits(name, shape, options):
    for dtype in (torch.float32, torch.bfloat16):
        case = Case("", name, inputs_of(name, *shape), options).cast(dtype)
        made = []
        for backward in ("fused", "inplace"):
            operands = [x.detach().clone() for x in case.operands]
            leaf = operands[0].requires_grad_()
            loss = case.ours(leaf * 1, *operands[1:], **case.options, backward=backward)
            made.append(torch.autograd.grad(loss, leaf)[0])
        assert torch.equal(*made)


def test_targets_in_lists_that_do_not_fit_on_the_chip():
    x = torch.randn(2, 12_000, generator=torch.Generator().manual_seed(0))
    targets = torch.full(x.shape, -1)
    targets[0, :3], targets[1, :2] = torch.tensor([7, 11_999, 7]), torch.tensor([0, 5000])
    for backward in ("fused", "inplace"):
        leaf = x.clone().requires_grad_()
        (ours,) = torch.autograd.grad(
            there(L.multilabel_margin_loss)(leaf * 1, targets, backward=backward), leaf
        )
        (torchs,) = torch.autograd.grad(F.multilabel_margin_loss(leaf.double(), targets), leaf)
        assert torch.allclose(ours, torchs, rtol=1e-4, atol=0)


def test_rows_whose_packs_begin_elsewhere():
    """A slice and its gradient are no neighbours in memory; neither are logits and probabilities."""
    whole = torch.randn(3, 1002, generator=torch.Generator().manual_seed(0))
    for x in (whole[:, 1:], whole[:, 2:], whole[:, 1:-1]):
        for target in (torch.arange(3), x.softmax(1).contiguous()):
            leaf = x.detach().requires_grad_()
            ours, torchs = (f(leaf, target) for f in (there(L.cross_entropy), F.cross_entropy))
            assert torch.allclose(ours, torchs.to(ours.dtype), rtol=1e-5)
            gradients = (torch.autograd.grad(loss, leaf)[0] for loss in (ours, torchs))
            assert torch.allclose(*gradients, rtol=1e-4, atol=1e-8)


CUDA_ON_CPU = os.environ.get("FUSED_LOSSES_CUDA_ON_CPU")


@pytest.mark.cpu
@pytest.mark.skipif(not CUDA_ON_CPU, reason="counts the launches of CUDA's kernels on the CPU")
@pytest.mark.parametrize("name", LOSSES)
def test_a_step_launches_once_forward_and_once_backward(name):
    count = ctypes.CDLL(CUDA_ON_CPU).cuda_on_cpu_launches
    few = {"elements": (6, 5), "classes": (6, 5), "scores": (6, 5), "vectors": (6, 5)}[LOSSES[name].shapes]
    leaf, *others = inputs_of(name, *few)
    leaf.requires_grad_()
    before = count()
    loss = getattr(L, name)(leaf, *others, **LOSSES[name].call)
    between = count()
    torch.autograd.grad(loss, leaf, torch.full_like(loss, 0.5))
    assert (between - before, count() - between) == (1, 1)


@pytest.mark.cpu
@pytest.mark.skipif(not CUDA_ON_CPU, reason="changes the device of CUDA's kernels on the CPU")
@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.shapes == "elements"])
def test_sums_of_elements_are_the_same_bits_on_every_device(name):
    """Whatever the number of its multiprocessors, which other engines choose the number of blocks by."""
    library = ctypes.CDLL(CUDA_ON_CPU)
    operands = [x.float() for x in inputs_of(name, 40, 1001)]
    losses = []
    try:
        for processors in (1, 2, 132):
            library.cuda_on_cpu_take_launches(None, processors, ctypes.c_long(48 << 10))
            losses.append(getattr(L, name)(*operands, **LOSSES[name].call))
    finally:
        library.cuda_on_cpu_take_launches(None, 2, ctypes.c_long(48 << 10))
    assert torch.equal(losses[0], losses[1]) and torch.equal(losses[0], losses[2])


MANY = {"side by side": (1, 200_003), "apart": (2, 30_011)}
TERMS = ({}, {"label_smoothing": 0.1}, {"label_smoothing": 1.0}, {"z_loss": 1e-4, "entropy": 0.05})


@pytest.mark.parametrize("options", TERMS, ids=str)
@pytest.mark.parametrize("probabilities", (False, True), ids=("labels", "probabilities"))
@pytest.mark.parametrize("layout", MANY)
def test_sums_of_many_classes(layout, probabilities, options):
    """Few threads share the classes of a row: plain sums in float32 would lose some bits."""
    logits, target = inputs_of("cross_entropy", *MANY[layout])
    if probabilities:
        if options.get("label_smoothing") == 1.0 and devices.preferred() == "triton":
            pytest.skip("equal soft targets, whose sum Triton's lanes round to one side, by 1e-6 of the loss")
        target = inputs_of("cross_entropy", *MANY[layout], seed=1)[0].softmax(1)
    if layout == "apart":
        logits = logits.t().contiguous().t()
    case = Case("", "cross_entropy", (logits, target), options)
    check(case.cast(torch.float32), torch.float32, "sum")

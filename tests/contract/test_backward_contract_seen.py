"""Who else may look at a backward: compilers, checkpoints, hooks, autocast. DESIGN.md's contract."""

from __future__ import annotations

import pytest
import torch
from kit import device
from kit.contract import call, case_of, each_loss, each_reduction, expected
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import fused_losses.functional as L
from fused_losses.losses.twins import twin_of
from fused_losses.registry import TWINS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:reduction", "ignore:There is a performance drop"),
]
# Tests marked `cpu` are about tensors as they are, which are moved elsewhere; test_gpu.py has the like.


@pytest.fixture
def fresh_compiler():
    """Each test's graphs count towards the compiler's limit of recompilations by themselves."""
    torch._dynamo.reset()


@each_loss
@each_reduction
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.cpu
def test_compiled_without_breaks(name, reduction):
    case = case_of(name, torch.float32)
    compiled = torch.compile(
        lambda *operands: case.ours(
            operands[0] * 1, *operands[1:], **case.options, reduction=reduction
        ).sum(),
        fullgraph=True,
    )
    eager, traced = case.sample()[0], case.sample()[0]
    call(
        case, case.ours, eager[0] * 1, *eager[1:], reduction=reduction, backward="recompute"
    ).sum().backward()
    compiled(*traced).backward()
    for mine, other in zip(eager, traced, strict=True):
        assert not mine.requires_grad or torch.equal(mine.grad, other.grad)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.cpu
def test_compiled_with_changing_sizes_and_ignored_rows():
    compiled = torch.compile(lambda x, t: L.cross_entropy(x, t), fullgraph=True, dynamic=True)
    for rows, classes in ((4, 10), (7, 33), (2, 2000)):
        x = torch.randn(rows, classes, requires_grad=True)
        t = torch.randint(0, classes, (rows,))
        t[0] = -100
        loss = compiled(x, t)
        loss.backward()
        same = x.detach().clone().requires_grad_()
        L.cross_entropy(same, t, backward="recompute").backward()  # what compiled graphs run
        assert torch.equal(x.grad, same.grad)


@each_loss
@pytest.mark.cpu
def test_checkpointed(name):
    case = case_of(name)
    for backward in ("fused", "recompute"):
        input = case.operands[0].clone().requires_grad_()
        checkpoint(
            lambda x, mode=backward: call(case, case.ours, x * 1, backward=mode), input, use_reentrant=False
        ).backward()
        torch.testing.assert_close(input.grad, expected(case))


@each_loss
@pytest.mark.cpu
def test_saved_tensor_hooks_see_all_that_is_kept(name):
    case = case_of(name)
    packed = []

    def pack(tensor: Tensor) -> int:
        packed.append(tensor.clone())
        return len(packed) - 1

    input = case.operands[0].clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda index: packed[index]):
        loss = call(case, case.ours, input)
    assert loss.grad_fn.gradients is None
    loss.backward()
    torch.testing.assert_close(input.grad, expected(case))


@each_loss
@pytest.mark.parametrize("backward", ("fused", "recompute"))
@pytest.mark.cpu
def test_operands_made_in_inference_mode(name, backward):
    """Torch's losses take those that they need not save, such as a teacher's outputs for l1_loss."""
    case = case_of(name)
    for k in range(1, len(case.operands)):
        with torch.inference_mode():
            made = case.operands[k].clone()
        operands = (*case.operands[1:k], made, *case.operands[k + 1 :])

        def gradient(function, operands=operands, **options):
            input = case.operands[0].clone().requires_grad_()
            return torch.autograd.grad(function(input, *operands, **case.options, **options) * 0.5, input)[0]

        try:
            right = gradient(case.torchs)
        except RuntimeError as error:
            assert "Inference tensors cannot be saved" in str(error)
        else:
            torch.testing.assert_close(gradient(case.ours, backward=backward), right)


@each_loss
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_autocast_returns_torch_s_dtype_and_reads_the_input_as_it_is(name, dtype):
    case = case_of(name, dtype)
    input = case.operands[0].clone().requires_grad_()
    on_gpu = device.device is not None
    if name == "binary_cross_entropy" and on_gpu:
        with device.autocast(), pytest.raises(RuntimeError, match="unsafe to autocast"):
            call(case, case.ours, input)
        return
    with device.autocast():
        loss = call(case, case.ours, input)
        theirs = call(case, device.there(twin_of(name)), case.operands[0])
    # On a CPU, losses composed of operators that autocast leaves alone stay as they are.
    composite = ("gaussian_nll_loss", "multilabel_soft_margin_loss", "triplet_margin_with_distance_loss")
    assert loss.dtype == theirs.dtype == (dtype if name in composite and not on_gpu else torch.float32)
    exact = call(case.cast(torch.float64), case.torchs, case.operands[0].double())
    rtol = 4 * torch.finfo(loss.dtype).eps
    torch.testing.assert_close(loss.double(), exact, rtol=rtol, atol=0)
    # Torch rounds between the operators of a composition; on an H200, its cross_entropy was 2e-5 off, too.
    if name in TWINS and not on_gpu:
        torch.testing.assert_close(loss, theirs, rtol=rtol, atol=0)
    loss.backward()
    assert input.grad.dtype == dtype

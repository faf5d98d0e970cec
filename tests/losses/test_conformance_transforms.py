"""PyTorch's own samples of every loss: higher derivatives, batched gradients, torch.func."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from kit.tolerance import IN_FLOAT32, fresh
from torch.utils._pytree import tree_flatten, tree_unflatten

from fused_losses import functional as ours

pytest.importorskip("expecttest")

from kit.torch_samples import OPS, by_backward, by_loss, ignore_warnings, is_torchs, samples_of

pytestmark = ignore_warnings


def as_function(function, sample, **options):
    """`function` of all tensors of the sample, those tensors, and which of them require grad."""
    flat, spec = tree_flatten(fresh(sample))
    where = [i for i, x in enumerate(flat) if isinstance(x, torch.Tensor)]

    def call(*tensors):
        rebuilt = list(flat)
        for i, tensor in zip(where, tensors, strict=True):
            rebuilt[i] = tensor
        args, kwargs = tree_unflatten(rebuilt, spec)
        return function(*args, **kwargs, **options)

    tensors = tuple(flat[i] for i in where)
    return call, tensors, tuple(i for i, x in enumerate(tensors) if x.requires_grad)


@by_loss
@by_backward
def test_gradcheck(name, backward, sample_counts):
    """As far as torch's own derivatives go; of ours that go further, see the second test below."""
    op = OPS[name]
    # Along random directions instead of element by element, as PyTorch's own tests do.
    tolerance = {"nondet_tol": op.gradcheck_nondet_tol, "fast_mode": True}
    # In forward mode, torch's own function runs, and no strategy is asked for: one of them will do.
    forward = backward == "fused"
    for sample in samples_of(name, torch.float64, with_references=False):
        call, tensors, _ = as_function(getattr(ours, name), sample, backward=backward)
        assert torch.autograd.gradcheck(
            call,
            tensors,
            check_forward_ad=forward and op.supports_forward_ad,
            check_batched_forward_grad=forward and op.check_batched_forward_grad,
            **tolerance,
        )
        sample_counts["for gradcheck"] += 1
        if op.supports_gradgrad:
            batched = {"check_batched_grad": op.check_batched_gradgrad}
            assert torch.autograd.gradgradcheck(call, tensors, **batched, **tolerance)
            sample_counts["for gradgradcheck"] += 1
        if forward and op.supports_fwgrad_bwgrad:
            # As PyTorch's own tests: a zero upstream gradient fails in mse_loss of torch itself.
            forward_over_reverse = {"check_fwd_over_rev": True, "check_rev_over_rev": False}
            assert torch.autograd.gradgradcheck(
                call, tensors, check_undefined_grad=False, **forward_over_reverse, **tolerance
            )
        elif forward:
            sample_counts["without forward over reverse, which torch lacks"] += 1


@pytest.mark.parametrize("name", IN_FLOAT32)
@by_backward
def test_second_derivatives_that_torch_lacks(name, backward, sample_counts):
    assert not OPS[name].supports_gradgrad
    for sample in samples_of(name, torch.float64, with_references=False):
        if not is_torchs(name, sample):
            call, tensors, _ = as_function(getattr(ours, name), sample, backward=backward)
            assert torch.autograd.gradgradcheck(call, tensors, check_batched_grad=True)
            sample_counts["for gradgradcheck"] += 1


@by_loss
@by_backward
def test_batched_upstream_gradients(name, backward, sample_counts):
    """As torch.autograd.functional.jacobian(vectorize=True) asks for them."""
    assert OPS[name].check_batched_grad
    for sample in samples_of(name, torch.float64, with_references=False):
        results = []
        for function, options in ((getattr(ours, name), {"backward": backward}), (getattr(F, name), {})):
            call, tensors, wanted = as_function(function, sample, **options)
            loss = call(*tensors)
            upstream = torch.linspace(-1, 2, 3 * loss.numel(), dtype=loss.dtype).view(3, *loss.shape)
            of = [tensors[i] for i in wanted]
            results.append(torch.autograd.grad(loss, of, upstream, is_grads_batched=True))
        torch.testing.assert_close(*results, rtol=1e-13, atol=1e-14)
        sample_counts["for batched gradients"] += 1


# Torch asks whether any variance is negative, for which there is no answer in a batch.
NO_VMAP = ("gaussian_nll_loss",)


def summed(function):
    return lambda *tensors: function(*tensors).sum()


def batch_of(tensor):
    """Three tensors with values as valid as those of `tensor`: probabilities and classes stay such."""
    if tensor.is_floating_point():
        return torch.stack([tensor.detach(), tensor.detach() * 0.5, tensor.detach().square()])
    return torch.stack([tensor, tensor.flip(tuple(range(tensor.dim()))), tensor])


@by_loss
@by_backward
def test_func_transforms(name, backward, sample_counts):
    vmap, grad, hessian = torch.func.vmap, torch.func.grad, torch.func.hessian
    for sample in samples_of(name, torch.float64, with_references=False):
        mine, tensors, wanted = as_function(getattr(ours, name), sample, backward=backward)
        eager, _, _ = as_function(getattr(F, name), sample)
        batches = tuple(batch_of(x) for x in tensors)

        def gradients_of(function, wanted=wanted):
            return grad(summed(function), argnums=wanted)

        pairs = [(gradients_of(mine)(*tensors), gradients_of(eager)(*tensors))]
        if name in NO_VMAP:
            with pytest.raises(RuntimeError, match="data-dependent control flow"):
                vmap(mine)(*batches)
            sample_counts["without vmap, which torch lacks"] += 1
        else:
            one_by_one = torch.stack([eager(*some) for some in zip(*batches, strict=True)])
            pairs.append((vmap(mine)(*batches), one_by_one))
            pairs.append((vmap(gradients_of(mine))(*batches), vmap(gradients_of(eager))(*batches)))
        if OPS[name].supports_fwgrad_bwgrad:
            pairs.append((hessian(summed(mine))(*tensors), hessian(summed(eager))(*tensors)))
        for result, expected in pairs:
            torch.testing.assert_close(result, expected, rtol=1e-13, atol=1e-14)
        sample_counts["for torch.func"] += 1

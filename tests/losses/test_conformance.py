"""PyTorch's own samples of every loss: values, gradients, errors and transforms are those of torch."""

from __future__ import annotations

import copy
import functools
import pickle

import pytest
import torch
import torch.nn.functional as F
from kit.cases import DTYPES
from kit.device import there
from kit.strictness import strictly
from kit.tolerance import (
    IN_FLOAT32,
    assert_same_results,
    eager_of,
    fresh,
    operands_of,
)
from torch.utils._pytree import tree_flatten, tree_unflatten

import fused_losses
from fused_losses import functional as ours
from fused_losses.registry import LOSSES

pytest.importorskip("expecttest")  # which torch's samples import

from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import ModuleErrorEnum, module_db

# Values differ from draw to draw. Losses of more than MANY samples, of the same few shapes over and over, are
# drawn less often.
DRAWS, FEWER_DRAWS, MANY = 4, 2, 30
LAYOUTS = ("contiguous", "noncontiguous")
OPS = {name: op for name in LOSSES for op in op_db if op.name == f"nn.functional.{name}"}
MODULES = {name: info for name in LOSSES for info in module_db if info.name == f"nn.{LOSSES[name].module}"}

by_loss = pytest.mark.parametrize("name", LOSSES)
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
by_layout = pytest.mark.parametrize("layout", LAYOUTS)
by_backward = pytest.mark.parametrize("backward", ("fused", "recompute"))

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:Using a target size", "ignore:reduction", "ignore:There is a performance drop"
    ),
]

assert_identical = functools.partial(torch.testing.assert_close, rtol=0, atol=0, equal_nan=True)


def samples_of(name, dtype, layout="contiguous", seed=0, with_references=True):
    """What OpInfo has, as (arguments, keywords); operands require grad where torch differentiates them.

    Reference samples hold NaN, which finite differences know nothing of: torch's own tests of derivatives
    leave them out, too.
    """
    torch.manual_seed(seed)
    op = OPS[name]
    grad = dtype.is_floating_point or dtype.is_complex
    samples = list(op.sample_inputs("cpu", dtype, requires_grad=grad))
    if with_references and op.reference_inputs_func is not None:  # else, they are sample_inputs once more
        samples += op.reference_inputs("cpu", dtype, requires_grad=grad)
    assert samples
    if layout == "noncontiguous":
        samples = [sample.noncontiguous() for sample in samples]
    return [(operands_of(name, (sample.input, *sample.args)), sample.kwargs) for sample in samples]


def is_torchs(name, sample):
    """What has no kernels, only torch's function; every other sample must run through kernels."""
    operands, _ = sample
    return not operands[0].is_floating_point() or any(
        x.is_complex() for x in operands if hasattr(x, "is_complex")
    )


def dtypes_of(name):
    """Torch's and ours: of IN_FLOAT32, torch lacks two."""
    return sorted({*OPS[name].supported_dtypes("cpu"), *DTYPES}, key=str)


def draws_of(samples):
    """`samples(seed)` for several seeds, transposed: for each sample, what differs in values only."""
    first = samples(0)
    few = len(first) > MANY
    return zip(first, *(samples(seed) for seed in range(1, FEWER_DRAWS if few else DRAWS)), strict=True)


@pytest.mark.gpu
@by_loss
@by_dtype
@by_layout
@by_backward
def test_values_and_gradients(name, dtype, layout, backward, sample_counts):
    def mine(*args, **kwargs):
        return there(getattr(ours, name))(*args, **kwargs, backward=backward)

    for draws in draws_of(lambda seed: samples_of(name, dtype, layout, seed)):
        if not is_torchs(name, draws[0]):
            assert_same_results(name, mine, eager_of(name), draws)
            sample_counts["for values and gradients"] += len(draws)


@pytest.mark.gpu
@by_loss
@by_backward
@pytest.mark.usefixtures("by_kernels_only")
def test_no_sample_runs_through_torch(name, backward, sample_counts):
    """But those that have no kernels do, and give what torch gives."""
    function = functools.partial(there(getattr(ours, name)), backward=backward)
    for dtype in dtypes_of(name):
        for layout in LAYOUTS:
            for sample in samples_of(name, dtype, layout):
                args, kwargs = fresh(sample)
                if not is_torchs(name, sample):
                    loss = function(*args, **kwargs)
                    loss.backward(torch.ones_like(loss))
                    sample_counts["without torch"] += 1
                elif dtype in OPS[name].supported_dtypes("cpu"):
                    with pytest.raises(RuntimeError, match="would run through torch"):
                        function(*args, **kwargs)
                    with strictly(False):
                        assert_identical(function(*args, **kwargs), getattr(F, name)(*args, **kwargs))
                    sample_counts["by torch, of dtypes or shapes without kernels"] += 1


@by_loss
def test_error_inputs(name, sample_counts):
    op = OPS[name]
    for error in op.error_inputs("cpu") if op.error_inputs_func else ():
        sample = error.sample_input
        for function in (getattr(F, name), getattr(ours, name)):
            with pytest.raises(error.error_type, match=error.error_regex):
                function(sample.input, *sample.args, **sample.kwargs)
        sample_counts["of errors"] += 1


@by_loss
def test_values_under_patch(name, sample_counts):
    torchs = getattr(F, name)
    for args, kwargs in samples_of(name, torch.float64, with_references=False):
        expected = torchs(*args, **kwargs)
        with fused_losses.patch():
            torch.testing.assert_close(getattr(F, name)(*args, **kwargs), expected)
            torch.testing.assert_close(OPS[name](*args, **kwargs), expected)
        sample_counts["under patch"] += 1


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
    for sample in samples_of(name, torch.float64, with_references=False):
        call, tensors, _ = as_function(getattr(ours, name), sample, backward=backward)
        assert torch.autograd.gradcheck(
            call,
            tensors,
            check_forward_ad=op.supports_forward_ad,
            check_batched_forward_grad=op.check_batched_forward_grad,
            **tolerance,
        )
        sample_counts["for gradcheck"] += 1
        if op.supports_gradgrad:
            batched = {"check_batched_grad": op.check_batched_gradgrad}
            assert torch.autograd.gradgradcheck(call, tensors, **batched, **tolerance)
            sample_counts["for gradgradcheck"] += 1
        if op.supports_fwgrad_bwgrad:
            # As PyTorch's own tests: a zero upstream gradient fails in mse_loss of torch itself.
            forward_over_reverse = {"check_fwd_over_rev": True, "check_rev_over_rev": False}
            assert torch.autograd.gradgradcheck(
                call, tensors, check_undefined_grad=False, **forward_over_reverse, **tolerance
            )
        else:
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


def module_inputs_of(name, dtype, seed=0):
    """What the constructor takes, by name, and what forward takes; the function's, if torch has none."""
    if name not in MODULES:
        return [(kwargs, args) for args, kwargs in samples_of(name, dtype, seed=seed)]
    torch.manual_seed(seed)
    info = MODULES[name]
    inputs = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=True)
    assert inputs and not any(x.constructor_input.args or x.forward_input.kwargs for x in inputs)
    return [(x.constructor_input.kwargs, operands_of(name, x.forward_input.args)) for x in inputs]


def as_one_call(kind, **options):
    """The module's class as a function of what its constructor and its forward take."""
    return lambda *args, **keywords: kind(**keywords, **options)(*args)


@pytest.mark.gpu
@by_loss
@by_dtype
@by_backward
@pytest.mark.usefixtures("by_kernels_only")
def test_module_values_and_gradients(name, dtype, backward, sample_counts):
    kinds = [getattr(package, LOSSES[name].module) for package in (fused_losses, torch.nn)]
    mine, eager = there(as_one_call(kinds[0], backward=backward)), eager_of(name, as_one_call(kinds[1]))
    for draws in draws_of(lambda seed: module_inputs_of(name, dtype, seed)):
        assert_same_results(name, mine, eager, [(forward, keywords) for keywords, forward in draws])
        sample_counts["of modules"] += len(draws)


@pytest.mark.parametrize("name", MODULES)
def test_module_error_inputs(name, sample_counts):
    info, kind = MODULES[name], LOSSES[name].module
    if info.module_error_inputs_func is None:
        return
    errors = info.module_error_inputs_func(
        info, device="cpu", dtype=torch.float32, requires_grad=True, training=True
    )
    for error in errors:
        constructor = error.module_error_input.constructor_input
        forward = error.module_error_input.forward_input
        for package in (torch.nn, fused_losses):
            with pytest.raises(error.error_type, match=error.error_regex):
                module = getattr(package, kind)(*constructor.args, **constructor.kwargs)
                assert error.error_on is ModuleErrorEnum.FORWARD_ERROR
                module(*forward.args, **forward.kwargs)
        sample_counts["of errors"] += 1


@by_loss
def test_module_is_torchs_in_all_but_speed(name):
    kind, torchs = (getattr(package, LOSSES[name].module) for package in (fused_losses, torch.nn))
    for options, operands in module_inputs_of(name, torch.float32):
        module, twin = kind(**options, backward="recompute"), torchs(**options)
        assert isinstance(module, torchs)
        assert repr(module) == repr(twin)
        assert_identical(module.state_dict(), twin.state_dict())
        module.load_state_dict(twin.state_dict())
        loss = module(*operands)
        for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert type(copied) is kind and copied.backward == "recompute"
            assert_identical(copied.state_dict(), twin.state_dict())
            assert_identical(copied(*operands), loss)
        # What torch.nn has pickled knows nothing of the attributes that are ours.
        twin.__class__ = kind
        assert_identical(twin(*operands), loss)

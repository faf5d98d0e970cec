"""PyTorch's own samples of every loss: values, gradients, errors and transforms are those of torch."""

from __future__ import annotations

import copy
import functools
import pickle

import pytest
import torch
import torch.nn.functional as F
from tolerance import assert_same_results, fresh
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import ModuleErrorEnum, module_db
from torch.utils._pytree import tree_flatten, tree_unflatten

import fused_losses
from fused_losses import dispatch
from fused_losses import functional as ours
from fused_losses.registry import LOSSES

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
DRAWS = 6
LAYOUTS = ("contiguous", "noncontiguous")
OPS = {name: op for name in LOSSES for op in op_db if op.name == f"nn.functional.{name}"}
MODULES = {name: info for name in LOSSES for info in module_db if info.name == f"nn.{LOSSES[name].module}"}

by_loss = pytest.mark.parametrize("name", OPS)
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
by_layout = pytest.mark.parametrize("layout", LAYOUTS)
by_backward = pytest.mark.parametrize("backward", ("fused", "recompute"))


assert_identical = functools.partial(torch.testing.assert_close, rtol=0, atol=0, equal_nan=True)


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """The samples are too small for more, and threads that wait for each other take most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def samples_of(name, dtype, layout="contiguous", seed=0):
    """What OpInfo has, as (arguments, keywords); tensors require grad where torch differentiates them."""
    torch.manual_seed(seed)
    op = OPS[name]
    assert dtype in op.supported_dtypes("cpu") and dtype in op.supported_backward_dtypes("cpu")
    samples = list(op.sample_inputs("cpu", dtype, requires_grad=True))
    if op.reference_inputs_func is not None:  # else, they are sample_inputs once more
        samples += op.reference_inputs("cpu", dtype, requires_grad=True)
    assert samples
    if layout == "noncontiguous":
        samples = [sample.noncontiguous() for sample in samples]
    return [((sample.input, *sample.args), sample.kwargs) for sample in samples]


@by_loss
@by_dtype
@by_layout
@by_backward
def test_values_and_gradients(name, dtype, layout, backward, sample_counts):
    def mine(*args, **kwargs):
        return getattr(ours, name)(*args, **kwargs, backward=backward)

    draws = [samples_of(name, dtype, layout, seed) for seed in range(DRAWS)]
    for same_but_for_values in zip(*draws, strict=True):
        assert_same_results(name, mine, getattr(F, name), same_but_for_values)
        sample_counts["for values and gradients"] += DRAWS


# Complex numbers have no kernels, only torch's function; every other sample must run through kernels.
BY_TORCH = {("l1_loss", torch.complex64), ("l1_loss", torch.complex128)}


@by_loss
@by_backward
def test_no_sample_runs_through_torch(name, backward, monkeypatch, sample_counts):
    monkeypatch.setattr(dispatch, "strict", True)
    function = getattr(ours, name)
    for dtype in sorted(OPS[name].supported_dtypes("cpu"), key=str):
        for layout in LAYOUTS:
            for sample in samples_of(name, dtype, layout):
                args, kwargs = fresh(sample)
                if (name, dtype) in BY_TORCH:
                    with pytest.raises(RuntimeError, match="would run through torch"):
                        function(*args, **kwargs, backward=backward)
                    with monkeypatch.context() as lenient:
                        lenient.setattr(dispatch, "strict", False)
                        result = function(*args, **kwargs, backward=backward)
                    assert_identical(result, getattr(F, name)(*args, **kwargs))
                    continue
                loss = function(*args, **kwargs, backward=backward)
                loss.backward(torch.ones_like(loss))
                sample_counts["without torch"] += 1


@by_loss
def test_error_inputs(name, sample_counts):
    op = OPS[name]
    for error in op.error_inputs("cpu") if op.error_inputs_func else ():
        sample = error.sample_input
        for function in (getattr(F, name), getattr(ours, name)):
            with pytest.raises(error.error_type, match=error.error_regex):
                function(sample.input, *sample.args, **sample.kwargs)
        sample_counts["of errors"] += 1


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
    op = OPS[name]
    assert op.supports_forward_ad and op.supports_gradgrad and op.supports_fwgrad_bwgrad
    for sample in samples_of(name, torch.float64):
        call, tensors, _ = as_function(getattr(ours, name), sample, backward=backward)
        tolerance = {"nondet_tol": op.gradcheck_nondet_tol}
        assert torch.autograd.gradcheck(
            call,
            tensors,
            check_forward_ad=True,
            check_batched_forward_grad=op.check_batched_forward_grad,
            **tolerance,
        )
        batched = {"check_batched_grad": op.check_batched_gradgrad}
        assert torch.autograd.gradgradcheck(call, tensors, **batched, **tolerance)
        # As PyTorch's own tests: a zero upstream gradient fails in mse_loss of torch itself.
        forward_over_reverse = {"check_fwd_over_rev": True, "check_rev_over_rev": False}
        assert torch.autograd.gradgradcheck(
            call, tensors, check_undefined_grad=False, **forward_over_reverse, **tolerance
        )
        sample_counts["for gradcheck"] += 1


@by_loss
@by_backward
def test_batched_upstream_gradients(name, backward, sample_counts):
    """As torch.autograd.functional.jacobian(vectorize=True) asks for them."""
    assert OPS[name].check_batched_grad
    for sample in samples_of(name, torch.float64):
        results = []
        for function, options in ((getattr(ours, name), {"backward": backward}), (getattr(F, name), {})):
            call, tensors, wanted = as_function(function, sample, **options)
            loss = call(*tensors)
            upstream = torch.linspace(-1, 2, 3 * loss.numel(), dtype=loss.dtype).view(3, *loss.shape)
            of = [tensors[i] for i in wanted]
            results.append(torch.autograd.grad(loss, of, upstream, is_grads_batched=True))
        torch.testing.assert_close(*results, rtol=1e-13, atol=1e-14)
        sample_counts["for batched gradients"] += 1


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
    for sample in samples_of(name, torch.float64):
        mine, tensors, wanted = as_function(getattr(ours, name), sample, backward=backward)
        eager, _, _ = as_function(getattr(F, name), sample)
        batches = tuple(batch_of(x) for x in tensors)

        def gradients_of(function, wanted=wanted):
            return grad(summed(function), argnums=wanted)

        one_by_one = torch.stack([eager(*some) for some in zip(*batches, strict=True)])
        for result, expected in (
            (vmap(mine)(*batches), one_by_one),
            (gradients_of(mine)(*tensors), gradients_of(eager)(*tensors)),
            (vmap(gradients_of(mine))(*batches), vmap(gradients_of(eager))(*batches)),
            (hessian(summed(mine))(*tensors), hessian(summed(eager))(*tensors)),
        ):
            torch.testing.assert_close(result, expected, rtol=1e-13, atol=1e-14)
        sample_counts["for torch.func"] += 1


def module_inputs_of(name, dtype, seed=0):
    torch.manual_seed(seed)
    info = MODULES[name]
    inputs = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=True)
    assert inputs
    return [(x.constructor_input, x.forward_input) for x in inputs]


def as_one_call(kind, **options):
    """The module's class as a function of what its constructor and its forward take."""
    return lambda *args, **keywords: kind(**keywords, **options)(*args)


@by_loss
@by_dtype
@by_backward
def test_module_values_and_gradients(name, dtype, backward, monkeypatch, sample_counts):
    monkeypatch.setattr(dispatch, "strict", True)
    kinds = [getattr(package, LOSSES[name].module) for package in (fused_losses, torch.nn)]
    mine, eager = as_one_call(kinds[0], backward=backward), as_one_call(kinds[1])
    draws = [module_inputs_of(name, dtype, seed) for seed in range(DRAWS)]
    for same_but_for_values in zip(*draws, strict=True):
        assert not any(constructor.args or forward.kwargs for constructor, forward in same_but_for_values)
        samples = [(forward.args, constructor.kwargs) for constructor, forward in same_but_for_values]
        assert_same_results(name, mine, eager, samples)
        sample_counts["of modules"] += DRAWS


@by_loss
def test_module_error_inputs(name, sample_counts):
    info, kind = MODULES[name], LOSSES[name].module
    if info.module_error_inputs_func is None:
        return
    errors = info.module_error_inputs_func(
        info, device="cpu", dtype=torch.float32, requires_grad=True, training=True
    )
    for error in errors:
        assert error.error_on is ModuleErrorEnum.FORWARD_ERROR  # constructors are torch's own
        constructor = error.module_error_input.constructor_input
        forward = error.module_error_input.forward_input
        for package in (torch.nn, fused_losses):
            module = getattr(package, kind)(*constructor.args, **constructor.kwargs)
            with pytest.raises(error.error_type, match=error.error_regex):
                module(*forward.args, **forward.kwargs)
        sample_counts["of errors"] += 1


@by_loss
def test_module_is_torchs_in_all_but_speed(name):
    kind, torchs = (getattr(package, LOSSES[name].module) for package in (fused_losses, torch.nn))
    for constructor, forward in module_inputs_of(name, torch.float32):
        module = kind(*constructor.args, **constructor.kwargs, backward="recompute")
        twin = torchs(*constructor.args, **constructor.kwargs)
        assert isinstance(module, torchs)
        assert repr(module) == repr(twin)
        assert_identical(module.state_dict(), twin.state_dict())
        module.load_state_dict(twin.state_dict())
        loss = module(*forward.args, **forward.kwargs)
        for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
            assert type(copied) is kind and copied.backward == "recompute"
            assert_identical(copied.state_dict(), twin.state_dict())
            assert_identical(copied(*forward.args, **forward.kwargs), loss)
        # What torch.nn has pickled knows nothing of the attributes that are ours.
        twin.__class__ = kind
        assert_identical(twin(*forward.args, **forward.kwargs), loss)

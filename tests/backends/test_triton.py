"""Which backend serves, and what Triton's kernels do where no other test looks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import fused_losses
import fused_losses.functional as L
from fused_losses import devices

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1" and os.environ.get("FUSED_LOSSES_BACKEND") == "triton"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="runs in Triton's interpreter: make test-triton")


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def step(loss):
    x = torch.arange(6.0).view(2, 3).requires_grad_()
    return torch.autograd.grad(loss(x, torch.ones(2, 3)), x)[0]


def test_the_environment_chooses_triton_and_explain_says_so():
    code = (
        "import torch, fused_losses as f\n"
        "from kit import interpreter\n"
        "interpreter.count_with_any_numpy()\n"
        "x = torch.randn(2, 3, requires_grad=True)\n"
        "print(f.explain(f.functional.mse_loss, x, torch.zeros(2, 3)))\n"
        "with f.backend('compiled'): print(f.explain(f.functional.mse_loss, x, torch.zeros(2, 3)))\n"
        "print(f.explain(f.functional.mse_loss, x.half(), torch.zeros(2, 3).half()))\n"
    )
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {"FUSED_LOSSES_BACKEND": "triton", "TRITON_INTERPRET": "1", "PYTHONPATH": path}
    first, second, third = run(code, **environment).splitlines()
    assert first == "mse_loss: Triton, interpreted, fused, as asked for"
    assert second.startswith("mse_loss: C++ (")
    assert "recompute, because in float16" in third


def test_the_context_gives_the_key_back():
    before = devices.table()
    with fused_losses.backend("triton"):
        assert any(kernels.startswith("Triton") for kernels in devices.table().values())
    assert devices.table() == before
    assert torch.equal(step(L.mse_loss), step(F.mse_loss))
    with pytest.raises(ValueError, match="one of compiled, triton"):
        fused_losses.backend("cuda").__enter__()


def test_without_triton_the_cpu_is_served():
    code = (
        "import sys\n"
        "sys.modules['triton'] = None\n"
        "import importlib.util\n"
        "found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'triton' else found(name, *rest)\n"
        "import torch, fused_losses as f\n"
        "from fused_losses import devices, info\n"
        "x = torch.randn(2, 3, requires_grad=True)\n"
        "f.functional.mse_loss(x, torch.zeros(2, 3)).backward()\n"
        "assert devices.kernels_for('cpu').startswith('C++')\n"
        "try:\n"
        "    f.backend('triton').__enter__()\n"
        "except RuntimeError as error:\n"
        "    print(error, info.collect()['triton'])\n"
    )
    printed = run(code, FUSED_LOSSES_BACKEND="triton")
    assert printed.strip() == "fused_losses: Triton is not installed not installed"


def test_explain_says_why_torch_runs():
    x = torch.randn(2, 3)
    assert "no kernels serve meta" in fused_losses.explain(L.mse_loss, x.to("meta"), x.to("meta"))
    complexes = torch.zeros(2, 3, dtype=torch.complex64)
    assert "do not take these dtypes" in fused_losses.explain(L.l1_loss, complexes, complexes)
    kept = x.clone()
    assert "inplace" in fused_losses.explain(L.mse_loss, x.requires_grad_(), kept * 0, backward="inplace")
    assert torch.equal(x, kept)


@interpreted
@pytest.mark.parametrize("label", (7, -1))
def test_a_label_out_of_bounds_fails_an_assertion_of_the_device(label):
    from triton.runtime.errors import InterpreterError

    for loss in (L.cross_entropy, L.nll_loss, L.multi_margin_loss):
        with pytest.raises(InterpreterError, match="out of bounds"):
            loss(torch.zeros(2, 7, requires_grad=True), torch.tensor([0, label]))


@interpreted
def test_domains_are_asserted():
    from triton.runtime.errors import InterpreterError

    with pytest.raises(InterpreterError, match="between 0 and 1"):
        L.binary_cross_entropy(torch.tensor([0.5, 1.5]), torch.zeros(2))
    with pytest.raises(InterpreterError, match="negative"):
        L.gaussian_nll_loss(torch.zeros(2), torch.zeros(2), torch.tensor([1.0, -1.0]))


@interpreted
def test_launches_are_few():
    """A forward is one launch."""
    from fused_losses.triton_kernels import launch

    made = []
    x, t = torch.randn(4, 7, requires_grad=True), torch.tensor([0, 1, -100, 2])
    cases = (
        (L.mse_loss, x, torch.zeros(4, 7)),
        (L.cross_entropy, torch.randn(4, 5000, requires_grad=True), t),
    )
    for function, *operands in cases:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(launch, "launch_hook", lambda kernel, *_: made.append(kernel.__name__))
            function(*operands)
        assert len(made) == 1, made
        made.clear()

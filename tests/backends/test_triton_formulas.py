"""A pointwise formula in Triton takes all parameters of its loss, as many as there may be."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fused_losses.call import Reduction
from fused_losses.registry import INPUT_GRADIENT, LOSSES, TARGET_GRADIENT

pytest.importorskip("triton")

import triton
import triton.language as tl
from triton import knobs
from triton.backends.compiler import GPUTarget

from fused_losses.triton_kernels import ahead_of_time, pointwise
from fused_losses.triton_kernels.formulas.math import splat
from fused_losses.triton_kernels.formulas.pointwise import MOST_NUMBERS, Formula
from fused_losses.triton_kernels.operators import operators_for

# Between numbers of float64 that float32 does not hold, a flag.
PARAMETERS = {"a": 0.1, "negates": True, "b": 1 / 3, "c": 1e-9, "d": 0.7}


@triton.jit
def bilinear(x, t, third, numbers, FLAGS: tl.constexpr, ROUNDED: tl.constexpr):
    """a x + b t + c + d x t, or minus that."""
    sign = -1.0 if FLAGS[0] else 1.0
    a = sign * splat(numbers[0], x)
    b = sign * splat(numbers[1], x)
    c = sign * splat(numbers[2], x)
    d = sign * splat(numbers[3], x)
    return a * x + b * t + c + d * x * t, (a + d * t, b + d * x)


@pytest.fixture
def forward(monkeypatch):
    """The forward operator of a loss of this formula, with parameters in the order above."""
    monkeypatch.setitem(pointwise.FORMULAS, "bilinear", Formula(bilinear))
    loss = replace(LOSSES["mse_loss"], name="bilinear", parameters=PARAMETERS)
    operator, *_ = operators_for(loss, pointwise.run)

    def forward(x, t, parameters):
        gradients = INPUT_GRADIENT | TARGET_GRADIENT
        return operator(x, t, None, None, parameters, None, None, Reduction.NONE, None, gradients)

    return forward


@pytest.mark.skipif(not knobs.runtime.interpret, reason="runs in Triton's interpreter: make test-triton")
def test_a_formula_takes_flags_and_numbers(forward):
    x, t = torch.rand(2, 3, 5, dtype=torch.float64)
    a, _, b, c, d = PARAMETERS.values()
    for sign, flag in ((-1, 1.0), (1, 0.0)):
        value, of_x, of_t = forward(x, t, (a, flag, b, c, d))
        torch.testing.assert_close(value, sign * (a * x + b * t + c + d * x * t), rtol=1e-14, atol=0)
        torch.testing.assert_close(of_x, sign * (a + d * t), rtol=1e-14, atol=0)
        torch.testing.assert_close(of_t, sign * (b + d * x), rtol=1e-14, atol=0)


def test_more_numbers_than_a_kernel_takes_are_refused(monkeypatch):
    monkeypatch.setitem(pointwise.FORMULAS, "bilinear", Formula(bilinear))
    parameters = dict.fromkeys("abcdefg"[: MOST_NUMBERS + 1], 0.5)
    operator, *_ = operators_for(
        replace(LOSSES["mse_loss"], name="bilinear", parameters=parameters), pointwise.run
    )
    x = torch.rand(3, 5)
    with pytest.raises(RuntimeError, match="at most 4 float parameters"):
        operator(x, x, None, None, tuple(parameters.values()), None, None, Reduction.MEAN, None, 0)


@pytest.mark.skipif(knobs.runtime.interpret, reason="TRITON_INTERPRET: kernels are interpreted")
def test_its_numbers_are_not_compiled_in(forward):
    x = torch.empty(64, 128, dtype=torch.bfloat16, device="meta")
    keys = []
    for numbers in ((0.1, 0.2, 0.3, 0.4), (1.0, 1, 0.0, 16)):
        a, *others = numbers
        with ahead_of_time.compiling(GPUTarget("cuda", 90, 32)) as launches:
            forward(x, x, (a, 1.0, *others))
        (launch,) = launches
        assert ".param .f64" in launch.compiled.asm["ptx"]
        keys.append(launch.key)
    assert keys[0] == keys[1]

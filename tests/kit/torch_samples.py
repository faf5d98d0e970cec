"""PyTorch's own samples of every loss: OpInfo's of functions, ModuleInfo's of modules.

Whoever imports this asks for expecttest first, which torch's samples import.
"""

from __future__ import annotations

import pytest
import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_modules import module_db

from fused_losses.registry import TWINS
from kit.cases import DTYPES
from kit.tolerance import operands_of

# Values differ from draw to draw. Losses of more than MANY samples, of the same few shapes over and over, are
# drawn less often.
DRAWS, FEWER_DRAWS, MANY = 4, 2, 30
LAYOUTS = ("contiguous", "noncontiguous")
STRATEGIES = ("fused", "recompute")
OPS = {name: op for name in TWINS for op in op_db if op.name == f"nn.functional.{name}"}
MODULES = {name: x for name, loss in TWINS.items() for x in module_db if x.name == f"nn.{loss.module}"}

by_loss = pytest.mark.parametrize("name", TWINS)
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
by_backward = pytest.mark.parametrize("backward", STRATEGIES)

ignore_warnings = pytest.mark.filterwarnings(
    "ignore:Using a target size", "ignore:reduction", "ignore:There is a performance drop"
)


def _drawn(name, dtype, seed, with_references=True):
    """What OpInfo has. Reference samples hold NaN, which finite differences know nothing of."""
    torch.manual_seed(seed)
    op = OPS[name]
    grad = dtype.is_floating_point or dtype.is_complex
    samples = list(op.sample_inputs("cpu", dtype, requires_grad=grad))
    if with_references and op.reference_inputs_func is not None:  # else, they are sample_inputs once more
        samples += op.reference_inputs("cpu", dtype, requires_grad=grad)
    assert samples
    return samples


def _as_call(name, sample):
    """A sample as (arguments, keywords); operands require grad where torch differentiates them."""
    return operands_of(name, (sample.input, *sample.args)), sample.kwargs


def samples_of(name, dtype, seed=0, with_references=True):
    """Calls, as (arguments, keywords). Torch's own tests of derivatives leave reference samples out, too."""
    return [_as_call(name, sample) for sample in _drawn(name, dtype, seed, with_references)]


def samples_in_layouts(name, dtype, seed=0):
    """For each sample, the call in each of LAYOUTS."""
    samples = _drawn(name, dtype, seed)
    return [(_as_call(name, sample), _as_call(name, sample.noncontiguous())) for sample in samples]


def is_torchs(name, sample):
    """Whether there are no kernels for the sample: its input is of integers, or an operand complex."""
    operands, _ = sample
    return not operands[0].is_floating_point() or any(
        x.is_complex() for x in operands if hasattr(x, "is_complex")
    )


def draws_of(samples):
    """`samples(seed)` for several seeds, transposed: for each sample, what differs in values only."""
    first = samples(0)
    few = len(first) > MANY
    return zip(first, *(samples(seed) for seed in range(1, FEWER_DRAWS if few else DRAWS)), strict=True)


def module_inputs_of(name, dtype, seed=0):
    """What the constructor takes, by name, and what forward takes; the function's, if torch has none."""
    if name not in MODULES:
        return [(kwargs, args) for args, kwargs in samples_of(name, dtype, seed=seed)]
    torch.manual_seed(seed)
    info = MODULES[name]
    inputs = info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=True)
    assert inputs and not any(x.constructor_input.args or x.forward_input.kwargs for x in inputs)
    return [(x.constructor_input.kwargs, operands_of(name, x.forward_input.args)) for x in inputs]

"""The operator for tritonbench, run as tritonbench runs it; what it imports of tritonbench is made here."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("rich")

FOLDER = Path(__file__).parents[2] / "benchmarks" / "tritonbench" / "fused_losses"


class BenchmarkOperator:
    """As tritonbench has it: arguments that it does not know are the operator's."""

    def __init__(self, tb_args, extra_args=None):
        self.device, self.dtype, self.extra_args = tb_args.device, tb_args.dtype, extra_args


@pytest.fixture
def operator(monkeypatch):
    """The class, imported from tritonbench's folder of operators; the names of its benchmarks."""
    benchmarks = {}

    def register_benchmark(baseline=False):
        def register(method):
            benchmarks[method.__name__] = baseline
            return method

        return register

    stub = ModuleType("tritonbench.utils.triton_op")
    stub.BenchmarkOperator, stub.register_benchmark = BenchmarkOperator, register_benchmark
    stub.register_x_val = lambda label: lambda method: method
    packages = {
        name: ModuleType(name) for name in ("tritonbench", "tritonbench.utils", "tritonbench.operators")
    }
    packages["tritonbench.operators"].__path__ = [str(FOLDER.parent)]
    for name, module in {**packages, "tritonbench.utils.triton_op": stub}.items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("fused_losses", "fused_losses.operator"):
        monkeypatch.delitem(sys.modules, f"tritonbench.operators.{name}", raising=False)
    return importlib.import_module("tritonbench.operators.fused_losses").Operator, benchmarks


@pytest.mark.parametrize("loss", ("cross_entropy", "mse_loss", "triplet_margin_loss"))
def test_benchmarks_agree(operator, loss):
    kind, benchmarks = operator
    arguments = argparse.Namespace(device="cpu", dtype=torch.float32)
    made = kind(arguments, ["--loss", loss, "--shapes", "32x10,8x100"])
    assert [name for name, is_baseline in benchmarks.items() if is_baseline] == ["torch_loss"]
    shapes, ran = [], set()
    for inputs in made.get_input_iter():
        shapes.append(made.get_x_val(inputs))
        results = {}
        for name in benchmarks:
            if name == "torch_compile_loss":  # it takes long to compile, and is not of this package
                continue
            try:
                step = getattr(made, name)(*inputs)
            except NotImplementedError:
                continue
            loss_ = step()
            loss_.backward()
            trained = made.get_grad_to_none(inputs)
            results[name] = [loss_.detach(), *(x.grad for x in trained)]
            for x in trained:
                x.grad = None
        ran |= set(results)
        for found in results.values():
            torch.testing.assert_close(found, results["torch_loss"])
    assert shapes == [(32, 10), (8, 100)]
    assert {"torch_loss", "fused", "recompute"} <= ran


def test_inputs_are_those_of_a_run_on_a_gpu_unless_shapes_are_given(operator, monkeypatch):
    kind, _ = operator
    made = kind(argparse.Namespace(device="cpu", dtype=torch.bfloat16), [])
    module = sys.modules["tritonbench.operators.fused_losses.operator"]
    monkeypatch.setattr(module.Case, "inputs", lambda case, seed: (torch.empty(case.shape, device="meta"),))
    shapes = [tuple(inputs[0].shape) for inputs in made.get_input_iter()]
    assert shapes[0] == (8192, 32768) and (4096, 131072) in shapes and len(shapes) == len(set(shapes))

"""A loss of fused_losses against torch, torch.compile and Liger-Kernel, by tritonbench's clock.

tritonbench looks for operators in its own folder, so this one is linked there:

    ln -s "$PWD/benchmarks/tritonbench/fused_losses" TRITONBENCH/tritonbench/operators/fused_losses
    cd TRITONBENCH
    python run.py --op fused_losses --precision bf16 --bwd --loss cross_entropy --shapes 8192x32768

Without `--shapes`, inputs are as large as in the benchmark of this package on a GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

from torch import Tensor
from tritonbench.utils.triton_op import BenchmarkOperator, register_benchmark, register_x_val

import fused_losses
from fused_losses.bench.cases import DTYPES, Case, select
from fused_losses.bench.gpu.cases import cases
from fused_losses.bench.options import shape
from fused_losses.bench.providers import PROVIDERS, Unavailable
from fused_losses.names import BackendName
from fused_losses.registry import LOSSES

NAMES = {dtype: name for name, dtype in DTYPES.items()}


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options beyond tritonbench's own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--loss", choices=LOSSES, default="cross_entropy")
    parser.add_argument("--shapes", help="of the first input, as 8192x32768,4096x131072")
    return parser.parse_args(arguments)


class Operator(BenchmarkOperator):
    """One loss, forward or forward and backward, as tritonbench is asked for."""

    def __init__(self, tb_args: argparse.Namespace, extra_args: list[str] | None = None) -> None:
        super().__init__(tb_args, extra_args)
        self.asked = parse(self.extra_args)

    def get_input_iter(self) -> Iterator[tuple[Tensor, ...]]:
        """The inputs of each shape."""
        loss, dtype = self.asked.loss, NAMES[self.dtype]
        if self.asked.shapes:
            shapes = [shape(text) for text in self.asked.shapes.split(",")]
        else:
            usual = [case for case in cases(self.device) if case.loss == loss and not case.variant]
            shapes = list(dict.fromkeys(case.shape for case in usual))
        for case in select(["large"], [loss], [dtype], self.device, shapes):
            yield case.inputs(seed=0)

    def _step(
        self, provider: str, inputs: tuple[Tensor, ...], backend: BackendName | None = None
    ) -> Callable[[], Any]:
        """The provider's loss of the inputs, as a function without arguments; by a backend, if one is given.

        Raises:
            NotImplementedError: the provider does not have the loss, or cannot run here.
        """
        if self.asked.loss not in PROVIDERS[provider].losses:
            raise NotImplementedError(f"{provider} does not have {self.asked.loss}")
        case = Case(self.asked.loss, "large", tuple(inputs[0].shape), NAMES[self.dtype], self.device)
        try:
            function = PROVIDERS[provider].make(case)
        except Unavailable as reason:
            raise NotImplementedError(f"{provider}: {reason}") from reason

        def call() -> Any:
            with nullcontext() if backend is None else fused_losses.backend(backend):
                return function(*inputs)

        return call

    @register_benchmark(baseline=True)
    def torch_loss(self, *inputs: Tensor) -> Callable[[], Any]:
        """Torch's function."""
        return self._step("eager", inputs)

    @register_benchmark()
    def torch_compile_loss(self, *inputs: Tensor) -> Callable[[], Any]:
        """The same under torch.compile."""
        return self._step("compile", inputs)

    @register_benchmark()
    def fused(self, *inputs: Tensor) -> Callable[[], Any]:
        """This package's, by the kernels that serve the device."""
        return self._step("fused", inputs)

    @register_benchmark()
    def fused_triton(self, *inputs: Tensor) -> Callable[[], Any]:
        """This package's, by its Triton kernels."""
        return self._step("fused", inputs, "triton")

    @register_benchmark()
    def recompute(self, *inputs: Tensor) -> Callable[[], Any]:
        """This package's, whose backward computes the gradient."""
        return self._step("recompute", inputs)

    @register_benchmark()
    def liger(self, *inputs: Tensor) -> Callable[[], Any]:
        """Liger-Kernel's, of logits (N, C)."""
        return self._step("liger", inputs)

    @register_x_val(label="shape")
    def get_x_val(self, example_inputs: tuple[Tensor, ...]) -> tuple[int, ...]:
        """What a line of the table is named after."""
        return tuple(example_inputs[0].shape)

    def get_grad_to_none(self, args: tuple[Tensor, ...]) -> list[Tensor]:
        """The inputs whose gradients do not add up from step to step."""
        return [args[index] for index in LOSSES[self.asked.loss].trained]

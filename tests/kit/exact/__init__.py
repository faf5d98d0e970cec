"""Every loss and its derivatives in numpy's long double, by formulas written out here.

What float64 results are judged against, of which torch has nothing better than its own; and what others are
judged against where torch itself overflows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kit.exact import classes, elements, vectors
from kit.exact.terms import size_of, total

FORMULAS = elements.FORMULAS | classes.FORMULAS | vectors.FORMULAS
"""The formulas by torch's names of the losses. They take the arguments of torch's functions."""


def results_in_extended_precision(
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    upstream: Tensor | None,
    judges_float64: bool = False,
) -> tuple[list[Tensor], list[Tensor]]:
    """The loss and, given `upstream`, the gradients of the operands that require it, rounded to float64 once.

    And the sizes of the terms that each number is the sum of. Takes the arguments of torch's function `name`.
    """
    assert np.finfo(np.longdouble).eps < torch.finfo(torch.float64).eps / 256, "no such type on this machine"
    options = {key: _long(value) for key, value in kwargs.items()}
    reduction = options.pop("reduction", "mean")
    if judges_float64 and name == "cross_entropy":
        options["sums_are_rounded"] = True
    with np.errstate(all="ignore"):
        exact = FORMULAS[name](*(_long(x) for x in args), **options)
        values, size = total(exact.values), size_of(exact.values)
        mean = np.size(values) if exact.divisor is None else exact.divisor
        divisor = {"mean": mean, "batchmean": len(args[0]) if args[0].dim() else 1}.get(reduction, 1)
        results = [(values, size) if reduction == "none" else (values.sum() / divisor, size.sum() / divisor)]
        results[0] = (results[0][0], np.maximum(results[0][1], exact.least_size))
        if upstream is not None:
            scale = _long(upstream) / divisor
            if exact.axis is None:
                scale = np.broadcast_to(scale, values.shape)
            elif reduction == "none":
                scale = np.expand_dims(scale, exact.axis)
            for i, (operand, terms) in enumerate(zip(args, exact.derivatives, strict=False)):
                if isinstance(operand, Tensor) and operand.requires_grad:
                    numbers = total(terms) * scale, size_of(terms) * abs(scale)
                    kept = (np.where(exact.kept, x, 0) for x in numbers)
                    shape = (*operand.shape, 1) if i == exact.short else operand.shape
                    results.append(tuple(_sum_to(x, shape).reshape(operand.shape) for x in kept))
    return tuple(
        [torch.from_numpy(np.asarray(x).astype(np.float64)) for x in column]
        for column in zip(*results, strict=True)
    )


def _long(value: Any) -> Any:
    if isinstance(value, Tensor):
        numbers = value.detach()
        return (
            numbers.double().numpy().astype(np.longdouble) if value.is_floating_point() else numbers.numpy()
        )
    return np.longdouble(value) if isinstance(value, float) else value


def _sum_to(gradient: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    gradient = gradient.sum(axis=tuple(range(gradient.ndim - len(shape))))
    ones = tuple(i for i, size in enumerate(shape) if size == 1)
    return gradient.sum(axis=ones, keepdims=True)

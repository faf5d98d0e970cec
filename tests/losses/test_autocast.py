"""Under autocast, with operands of every mix of dtypes: torch's dtypes, values and exceptions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kit import device, older_torch
from kit.cases import DTYPES, inputs_of
from kit.tolerance import operands_of
from torch import Tensor

import fused_losses.functional as L
from fused_losses.registry import LOSSES, TWINS

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore:reduction")]

ELEMENT_WEIGHTED = (
    "binary_cross_entropy",
    "binary_cross_entropy_with_logits",
    "mse_loss",
    "l1_loss",
    "huber_loss",
    "multilabel_soft_margin_loss",
)
TAKES_INTEGERS = (
    "mse_loss",
    "huber_loss",
    "poisson_nll_loss",
    "gaussian_nll_loss",
    "hinge_embedding_loss",
    "soft_margin_loss",
    "multilabel_soft_margin_loss",
)


def samples(name: str) -> Iterator[tuple[tuple[Tensor, ...], dict[str, Any]]]:
    """Operands and options, with weights, where the loss has some, and a target of integers."""
    operands, call = inputs_of(name, 4, 3), LOSSES[name].call
    yield operands, call
    weight = torch.tensor([0.5, 0.25, 1.0], dtype=torch.float64)
    if name in ELEMENT_WEIGHTED:
        yield operands, {**call, "weight": weight.expand(4, 3)}
    if name in ("cross_entropy", "nll_loss", "multi_margin_loss"):
        yield operands, {**call, "weight": weight}
    if name == "binary_cross_entropy_with_logits":
        yield operands, {**call, "pos_weight": weight}
    if name == "cross_entropy":
        probabilities = operands[0].softmax(1)
        yield (operands[0], probabilities), call
        yield (operands[0], probabilities), {**call, "weight": weight}
    if name in TAKES_INTEGERS:
        yield (operands[0], torch.ones(4, 3, dtype=torch.long), *operands[2:]), call
    if name == "triplet_margin_with_distance_loss":
        yield operands, {**call, "distance_function": L.cosine_distance}


def mixes(
    operands: tuple[Tensor, ...], options: dict[str, Any]
) -> Iterator[tuple[list[Tensor], dict[str, Any]]]:
    """The same with every dtype of each floating tensor."""
    flat = [*operands, *options.values()]
    floating = [i for i, x in enumerate(flat) if isinstance(x, Tensor) and x.is_floating_point()]
    for dtypes in product(DTYPES, repeat=len(floating)):
        mixed = list(flat)
        for i, dtype in zip(floating, dtypes, strict=True):
            mixed[i] = flat[i].to(dtype)
        yield mixed[: len(operands)], dict(zip(options, mixed[len(operands) :], strict=True))


def outcome(
    function: Callable[..., Tensor], name: str, operands: list[Tensor], options: dict[str, Any]
) -> Any:
    """The loss and its gradients, or the exception's type."""
    leaves = operands_of(name, operands)
    try:
        with device.autocast():
            loss = device.there(function)(*leaves, **options)
        wanted = [x for x in leaves if x.requires_grad]
        return [loss.detach(), *torch.autograd.grad(loss, wanted, torch.ones_like(loss))]
    except Exception as error:
        return type(error)


@pytest.mark.parametrize("reduction", ("mean", "none"))
@pytest.mark.parametrize("name", TWINS)
def test_every_mix_of_dtypes(name, reduction):
    for operands, options in samples(name):
        for mixed, others in mixes(operands, options):
            others["reduction"] = reduction
            tensors = [
                x for x in (*mixed, *others.values()) if isinstance(x, Tensor) and x.is_floating_point()
            ]
            label = [str(x.dtype) for x in tensors]
            ours = outcome(getattr(L, name), name, mixed, others)
            theirs = outcome(older_torch.LOSSES.get(name, getattr(F, name)), name, mixed, others)
            if isinstance(theirs, type) or isinstance(ours, type):
                assert ours is theirs, f"{label}: {ours} instead of {theirs}"
                continue
            # Torch rounds between operators: what cancels of sums of a few terms differs by some ulp of them.
            bound = 16 * max(torch.finfo(x.dtype).eps for x in tensors)
            for mine, other in zip(ours, theirs, strict=True):
                assert mine.dtype is other.dtype, f"{label}: {mine.dtype} instead of {other.dtype}"
                message = f"{label}: {mine} instead of {other}"
                torch.testing.assert_close(mine, other, rtol=bound, atol=bound, msg=message)

"""Random calls of random losses, each judged by the rule of accuracy.

`draw` makes a step of a seed: loss, shape, dtype, layout in memory, options, reduction, strategy of the
backward and upstream gradient. `judge` makes the call and compares loss and gradients with torch's. The same
seed makes the same step, whatever came before it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fused_losses.registry import LOSSES
from kit.cases import Case, layouts
from kit.cases.case import inputs_of, option_name, uniform
from kit.tolerance import (
    assert_all_as_accurate,
    describe,
    fresh,
    loss_and_gradients,
    references,
    together,
)

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

DRAWS = 4
"""Samples of a step, which differ in values and are judged together: of a single loss, torch may happen to be
right to the last bit. There are more where each has few elements."""

FEWEST_NUMBERS = 64
"""Elements of the input, in all samples together, among which torch's largest error means something."""

MOST_ELEMENTS = 2**12
"""Elements of the first operand in most steps: several chunks of every engine, with tails."""

LARGE_ELEMENTS = 2**21
"""Elements in one step of a hundred, in one sample: buffers of 4 MiB and more are kept for later steps."""

LARGE_SHARE = 0.01

Made = Callable[[tuple[int, ...], Random], Any]
"""Makes the value of an option for the first operand's shape."""


def _one_of(*values: Any) -> Made:
    return lambda shape, random: random.choice(values)


def _of_classes(shape: tuple[int, ...], random: Random) -> Tensor:
    """Factors (C) of the classes, which are dimension 1, or the only one."""
    return uniform(shape[min(1, len(shape) - 1)], seed=random.getrandbits(31)) + 0.1


def _of_elements(shape: tuple[int, ...], random: Random) -> Tensor:
    return uniform(*shape, seed=random.getrandbits(31)) + 0.1


def _of_last_dimension(shape: tuple[int, ...], random: Random) -> Tensor:
    """Factors that are broadcast, in the shape of the last dimension, or of none."""
    return uniform(*shape[-1:], seed=random.getrandbits(31)) + 0.1


MARGINS = (0.4637, 1.1713)
"""No number of 16 bits meets them exactly, where the slope of a hinge is a matter of convention."""

_SOFTMAX = {"weight": _of_classes, "ignore_index": _one_of(0, 1, -1)}
_TRIPLET = {"swap": _one_of(True)}

OPTIONS: dict[str, dict[str, Made]] = {
    "cross_entropy": _SOFTMAX
    | {
        "label_smoothing": _one_of(0.1, 0.5, 1.0),
        "z_loss": _one_of(1e-4, 0.1),
        "softcap": _one_of(5.0, 30.0),
        "logit_scale": _one_of(0.5, 3.0),
        "entropy": _one_of(0.05),
    },
    "nll_loss": _SOFTMAX,
    "binary_cross_entropy": {"weight": _of_last_dimension},
    "binary_cross_entropy_with_logits": {"weight": _of_last_dimension, "pos_weight": _of_last_dimension},
    "l1_loss": {"weight": _of_elements},
    "mse_loss": {"weight": _of_elements},
    "smooth_l1_loss": {"beta": _one_of(0.0, 0.1, 2.0)},
    "huber_loss": {"delta": _one_of(0.1, 2.0)},
    "poisson_nll_loss": {"full": _one_of(True)},
    "gaussian_nll_loss": {"full": _one_of(True), "eps": _one_of(0.75)},
    "multilabel_soft_margin_loss": {"weight": _of_classes},
    "multi_margin_loss": {"weight": _of_classes, "p": _one_of(2)},
    "sigmoid_focal_loss": {
        "weight": _of_last_dimension,
        "alpha": _one_of(-1.0, 0.6),
        "gamma": _one_of(0.0, 0.4, 1.0, 1.5, 3.0),
    },
    "asymmetric_loss": {
        "weight": _of_last_dimension,
        "gamma_neg": _one_of(0.0, 0.4, 1.0, 2.5),
        "gamma_pos": _one_of(0.0, 0.4, 2.5),
        "clip": _one_of(None, 0.2),
    },
    "triplet_margin_loss": _TRIPLET | {"p": _one_of(1.0, 3.0)},
    "triplet_margin_with_distance_loss": _TRIPLET,
}
"""By loss, what a call may have besides operands, margin, reduction; each with a chance of one in three."""

BACKWARDS = ("fused", "fused", "recompute", "inplace")
"""Strategies, the default as often as the others together."""


@dataclass(frozen=True)
class Step:
    """One step: a call, its strategy, and how its gradient is asked for."""

    seed: int
    name: str
    cases: tuple[Case, ...]
    """The call with several values."""
    laid: tuple[Case, ...]
    """The same values; in two steps out of three, an operand lies otherwise in memory."""
    layout: str
    reduction: str
    backward: str
    upstream: str
    """"one", as of `loss.backward()`, "factor", or "none", if no gradient is wanted."""

    def __str__(self) -> str:
        case = self.cases[0]
        options = option_name({**case.options, "reduction": self.reduction, "backward": self.backward})
        operands = describe((case.operands, {}))[0]
        return f"seed {self.seed}: {self.name}{options}, {operands}, {self.layout}, upstream {self.upstream}"


def draw(seed: int) -> Step:
    """The step of a seed."""
    random = Random(seed)
    name = random.choice(list(LOSSES))
    loss = LOSSES[name]
    # Sums of a million terms within a row are beyond what float64 itself can judge.
    is_large = random.random() < LARGE_SHARE and loss.family != "class_margin"
    shape = _shape(loss.shapes, LARGE_ELEMENTS if is_large else MOST_ELEMENTS, random)
    if name == "cosine_embedding_loss" and shape[-1] == 1:
        shape = (
            *shape[:-1],
            2,
        )  # of single numbers, the gradient is what two equal numbers leave of each other
    options = {
        key: make(shape, random) for key, make in OPTIONS.get(name, {}).items() if random.random() < 1 / 3
    }
    if "margin" in loss.parameters:
        options["margin"] = random.choice(MARGINS)
    probabilities = name == "cross_entropy" and random.random() < 0.25
    if probabilities:  # which cannot be ignored, as torch says
        options.pop("ignore_index", None)
    ignored_step = random.choice((None, 2, 3, 9)) if loss.family == "softmax" else None
    dtype = random.choice(DTYPES)
    count = 1 if is_large else max(DRAWS, FEWEST_NUMBERS // max(1, math.prod(shape)))
    cases = []
    for _ in range(count):
        operands = _operands(name, shape, random.getrandbits(31), probabilities)
        if ignored_step and not operands[1].is_floating_point():
            operands[1].view(-1)[1::ignored_step] = options.get("ignore_index", -100)
        cases.append(Case("random", name, tuple(operands), options).cast(dtype))
    layout, laid = _laid_out(cases, random)
    return Step(
        seed,
        name,
        tuple(cases),
        tuple(laid),
        layout,
        random.choice(cases[0].reductions),
        random.choice(BACKWARDS),
        random.choice(("one", "factor", "none")),
    )


def _shape(kind: str, most: int, random: Random) -> tuple[int, ...]:
    """A shape of the first operand, as `Loss.shapes` says; sizes of every order of magnitude alike."""
    dimensions = {"elements": (0, 4), "classes": (1, 4), "scores": (1, 2), "vectors": (2, 2)}[kind]
    sizes: list[int] = []
    for _ in range(random.randint(*dimensions)):
        sizes.append(max(1, int(most ** random.random())))
        most //= sizes[-1]
    random.shuffle(sizes)
    return tuple(sizes)


def _operands(name: str, shape: tuple[int, ...], seed: int, probabilities: bool) -> list[Tensor]:
    """As in training, or for cross_entropy, with probabilities of classes as the target."""
    if LOSSES[name].shapes in ("classes", "scores") and len(shape) == 1:
        made = [x[0] for x in inputs_of(name, 1, *shape, seed=seed)]
    else:
        made = list(inputs_of(name, *shape, seed=seed))
    if probabilities:
        generator = torch.Generator().manual_seed(seed)
        axis = min(1, len(shape) - 1)
        made[1] = torch.randn(shape, generator=generator, dtype=torch.float64).softmax(axis)
    return made


def _laid_out(cases: list[Case], random: Random) -> tuple[str, list[Case]]:
    """One operand of all cases in another layout, and the name of that."""
    index = random.randrange(len(cases[0].operands))
    names = [way for way, _ in layouts(cases[0].operands[index])]
    if random.random() < 1 / 3:
        return "contiguous", cases
    chosen = random.choice(names)

    def laid(case: Case) -> Case:
        operands = list(case.operands)
        operands[index] = dict(layouts(operands[index]))[chosen]
        return Case(case.label, case.name, tuple(operands), case.options)

    return f"operand {index} {chosen}", [laid(case) for case in cases]


def judge(step: Step) -> None:
    """Makes the call.

    Raises:
        AssertionError: a result is not as accurate as torch's.
    """
    first, *_ = step.cases
    plain, laid = ([case.sample(reduction=step.reduction) for case in x] for x in (step.cases, step.laid))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of some reductions and shapes
        upstream = _upstream(step, plain[0])
        # Torch's own backward of images' nll_loss raises where they are not contiguous.
        eager = together(loss_and_gradients(first.torchs, fresh(sample), upstream) for sample in plain)
        pairs = [references(step.name, first.torchs, sample, upstream) for sample in plain]
        exact, sizes = (together(each) for each in zip(*pairs, strict=True))
        function = _with_strategy(first, step.backward)
        ours = together(loss_and_gradients(function, fresh(sample), upstream) for sample in laid)
    assert_all_as_accurate(step.name, ours, eager, exact, sizes, str(step))


def _upstream(step: Step, sample: Any) -> Tensor | None:
    if step.upstream == "none":
        return None
    with torch.no_grad():
        loss = step.cases[0].torchs(*sample[0], **sample[1])
    if step.upstream == "one":
        return torch.ones_like(loss)
    generator = torch.Generator().manual_seed(step.seed)
    return torch.randn(loss.shape, generator=generator).to(loss.dtype)


def _with_strategy(case: Case, backward: str) -> Callable[..., Tensor]:
    """Our function; with "inplace", of copies, as the operands are leaves."""

    def call(*operands: Any, **options: Any) -> Tensor:
        if backward == "inplace":
            operands = tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, operands)
        return case.ours(*operands, **options, backward=backward)

    return call


def judged(seed: int, steps: int) -> Iterator[str]:
    """What is wrong with each of so many steps, from one seed on: empty if nothing is."""
    for each in range(seed, seed + steps):
        step = draw(each)
        try:
            judge(step)
        except Exception as error:  # whatever a call raises is a failure of it
            yield f"{step}: {type(error).__name__}: {error}"
        else:
            yield ""

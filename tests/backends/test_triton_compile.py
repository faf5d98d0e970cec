"""Triton's kernels compile for GPUs that are not there, and not anew for another size or number."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest
import torch
from kit.cases import all_cases, layouts
from torch.utils._pytree import tree_map

import fused_losses.functional as L
from fused_losses.registry import LOSSES

pytest.importorskip("triton")

from triton import knobs
from triton.backends.compiler import GPUTarget

from fused_losses import triton_kernels
from fused_losses.triton_kernels import ahead_of_time

pytestmark = [
    pytest.mark.usefixtures("by_kernels_only"),
    pytest.mark.skipif(knobs.runtime.interpret, reason="TRITON_INTERPRET: kernels are interpreted"),
    pytest.mark.filterwarnings("ignore:reduction", "ignore:Using a target size"),
]

HOPPER = GPUTarget("cuda", 90, 32)
TARGETS = (
    (GPUTarget("cuda", 80, 32), torch.bfloat16),
    (HOPPER, torch.bfloat16),
    (HOPPER, torch.float32),
    (GPUTarget("cuda", 100, 32), torch.bfloat16),
    (GPUTarget("hip", "gfx942", 64), torch.bfloat16),
)

SHAPES = {
    "elements": [(64, 1024)],
    # Short rows, a map of classes in dimension 1, and rows that no program can hold.
    "classes": [(64, 1024), (2, 21, 16, 16), (4, 131072)],
    "scores": [(64, 1024)],
    "vectors": [(64, 128)],
}

NAMES = [name for name, loss in LOSSES.items() if loss.family in triton_kernels.ENGINES]
each_loss = pytest.mark.parametrize("name", NAMES)


def name_of(target):
    return f"{target.backend}:{target.arch}"


def on_meta(tree):
    """The same tensors without their elements."""

    def strip(x):
        return x.detach().to("meta").requires_grad_(x.requires_grad) if isinstance(x, torch.Tensor) else x

    return tree_map(strip, tree)


def operands_of(name, shape, dtype):
    """A loss's tensors as in training, on the meta device; all that may require grad do."""
    inputs = LOSSES[name].inputs(shape, torch.Generator().manual_seed(0))
    bits = LOSSES[name].differentiable
    return on_meta(
        tuple(
            x.to(dtype).requires_grad_(bool(bits >> i & 1)) if x.is_floating_point() else x
            for i, x in enumerate(inputs)
        )
    )


def launches_of(target, function, operands, options):
    """The launches of a forward that computes the gradients, and of a backward."""
    operands, options = on_meta((operands, options))
    with ahead_of_time.compiling(target) as launches:
        loss = function(*operands, **options)
        leaves = [x for x in operands if isinstance(x, torch.Tensor) and x.requires_grad]
        torch.autograd.grad(loss, leaves, torch.empty_like(loss))
    assert len(launches) >= 2
    return launches


@each_loss
@pytest.mark.parametrize(
    ("target", "dtype"), TARGETS, ids=lambda x: name_of(x) if isinstance(x, GPUTarget) else str(x)
)
def test_every_loss_compiles(name, target, dtype):
    for shape in SHAPES[LOSSES[name].shapes]:
        operands = operands_of(name, shape, dtype)
        for launch in launches_of(target, getattr(L, name), operands, LOSSES[name].call):
            assert launch.compiled.asm["cubin" if target.backend == "cuda" else "hsaco"]


@pytest.mark.parametrize(
    ("target", "dtype"), TARGETS, ids=lambda x: name_of(x) if isinstance(x, GPUTarget) else str(x)
)
def test_terms_compile(target, dtype):
    terms = {"z_loss": 1e-4, "entropy": 0.01, "logit_scale": 0.5, "softcap": 30.0}
    for shape in SHAPES["classes"]:
        operands = operands_of("cross_entropy", shape, dtype)
        for launch in launches_of(target, L.cross_entropy, operands, terms):
            assert launch.compiled.asm["cubin" if target.backend == "cuda" else "hsaco"]


def is_none(node):
    return isinstance(node, ast.Constant) and node.value is None


def none_beyond_triton_36(functions):
    """Where jitted functions say `return None`, or ask for the length of a tuple that may hold None."""
    nodes = [node for function in functions for node in ast.walk(function)]
    compared = [x.left for x in nodes if isinstance(x, ast.Compare) and is_none(x.comparators[0])]
    # Found by name, as the same tuple has the same name in every function.
    may_hold = {x.id for subscript in compared for x in ast.walk(subscript) if isinstance(x, ast.Name)}
    for node in nodes:
        returns_none = isinstance(node, ast.Return) and is_none(node.value)
        is_length = isinstance(node, ast.Call) and ast.unparse(node.func) == "len"
        if returns_none or (is_length and ast.unparse(node.args[0]) in may_hold):
            yield node


def test_none_is_used_as_triton_36_can():
    found = []
    for path in sorted(Path(triton_kernels.__file__).parent.rglob("*.py")):
        found += [
            node
            for node in ast.walk(ast.parse(path.read_text(), str(path)))
            if isinstance(node, ast.FunctionDef)
            and any(ast.unparse(each).startswith("triton.jit") for each in node.decorator_list)
        ]
    assert len(found) > 50
    assert not [f"line {node.lineno}: {ast.unparse(node)}" for node in none_beyond_triton_36(found)]


def branches_of(name):
    """The first case of each set of options, flags and kinds of operands: what kernels are compiled for."""
    found = {}
    for case in all_cases():
        tensors = [x for x in case.operands if isinstance(x, torch.Tensor)]
        if case.name == name and min(x.numel() for x in tensors) > 1:
            flags = sorted((option, value is True) for option, value in case.options.items())
            found.setdefault(str((flags, [x.is_floating_point() for x in tensors])), case.cast(torch.float32))
    return found.values()


@each_loss
def test_every_branch_compiles(name):
    for case in branches_of(name):
        launches_of(HOPPER, case.ours, *case.sample(reduction="mean"))


# One loss for each kernel: formulas have nothing to do with layouts.
KERNELS = (
    "mse_loss",
    "cosine_embedding_loss",
    "cross_entropy",
    "nll_loss",
    "multi_margin_loss",
    "multilabel_margin_loss",
)


@pytest.mark.parametrize("name", [name for name in KERNELS if name in NAMES])
def test_every_layout_compiles(name):
    shape = (2, 3, 4, 5) if LOSSES[name].shapes in ("elements", "classes") else (4, 5)
    input, *others = operands_of(name, shape, torch.float32)
    memory = torch.empty(input.shape)
    for label, laid in layouts(memory):
        options = {"reduction": "none" if label in ("strided", "channels_last") else "mean"}
        launches_of(HOPPER, getattr(L, name), (laid.requires_grad_(), *others), options)


@each_loss
def test_in_place_compiles(name):
    operands = operands_of(name, (64, 128), torch.bfloat16)
    input, *others = (x.detach() for x in operands)
    with ahead_of_time.compiling(HOPPER) as launches:
        loss = getattr(L, name)(input.requires_grad_() * 1, *others, **LOSSES[name].call, backward="inplace")
        torch.autograd.grad(loss, input, torch.empty_like(loss))
    assert launches[-1].kernel == "scale"


@pytest.fixture
def without_compiler(monkeypatch):
    """Nothing is compiled: tests ask only which launches would share their machine code."""
    monkeypatch.setattr(ahead_of_time, "compile", lambda *_, **__: None)
    monkeypatch.setattr(ahead_of_time, "_compiled", {})


def keys_of(name, shape, **options):
    operands = operands_of(name, shape, torch.bfloat16)
    launches = launches_of(HOPPER, getattr(L, name), operands, {**LOSSES[name].call, **options})
    return [launch.key for launch in launches]


# Shapes that share their machine code: of the same divisibility by 16, and the same power of two above.
SAME_CODE = {
    "elements": [[(48, 1000), (512, 1024), (16, 4096)], [(3, 1001), (7, 333)]],
    "classes": [
        [(256, 32000), (512, 30000), (1024, 24576)],
        [(256, 50257), (112, 40001)],
        [(32, 128256), (64, 151936)],
        [(4, 21, 32, 32), (8, 19, 64, 48)],
    ],
    "scores": [[(48, 1008), (512, 1024)], [(33, 1001), (77, 999)]],
    "vectors": [[(48, 112), (512, 128)], [(33, 101), (77, 99)]],
}


@pytest.mark.usefixtures("without_compiler")
@each_loss
def test_sizes_are_not_compiled_in(name):
    for alike in SAME_CODE[LOSSES[name].shapes]:
        first, *others = (keys_of(name, shape) for shape in alike)
        for shape, keys in zip(alike[1:], others, strict=True):
            assert keys == first, f"{shape} is compiled anew after {alike[0]}"


# 1 and multiples of 16 are what Triton compiles in, unless it is told not to; whole numbers come as int, too.
ANY_NUMBER = (0.5, 1.0, 1, 16)
SHARES = (0.5, 0.25, 1.0, 1)
IGNORED = (-1.0, 1, 16, 0.5)
# Options that are no float parameters of a formula, or some of whose values are compiled in.
NUMBERS = {
    "cross_entropy": {
        "label_smoothing": (0.1, 0.5, 1.0, 1),
        "ignore_index": (-100, 0, 1, 16, 7),
        "z_loss": (1e-4, 0.5, 1.0, 1, 16),
        "entropy": (0.01, 0.5, 1, 16),
        "logit_scale": (0.5, 2.0, 16),
        "softcap": (30.0, 0.5, 1, 16),
    },
    "nll_loss": {"ignore_index": (-100, 0, 1, 16, 7)},
    "binary_cross_entropy": {"label_smoothing": SHARES, "ignore_index": IGNORED},
    "binary_cross_entropy_with_logits": {"label_smoothing": SHARES, "ignore_index": IGNORED},
    "multi_margin_loss": {"p": ()},  # 1 and 2 are two formulas
    "triplet_margin_loss": {"p": (3.0, 5.0)},  # so are 1, 2 and infinity
    "sigmoid_focal_loss": {"alpha": (*SHARES, -1), "ignore_index": IGNORED},
    "asymmetric_loss": {"clip": SHARES, "eps": SHARES, "ignore_index": IGNORED},
}


def numbers_of(name):
    """Options of a loss's function that are numbers, and values of each that share their machine code."""
    options = inspect.signature(getattr(L, name)).parameters
    parameters = LOSSES[name].parameters
    floats = {x: ANY_NUMBER for x in parameters if x in options and not isinstance(parameters[x], bool)}
    return {**floats, **NUMBERS.get(name, {})}


CHOICES = [
    pytest.param(name, option, values, id=f"{name}-{option}")
    for name in NAMES
    for option, values in numbers_of(name).items()
    if values
]


@pytest.mark.usefixtures("without_compiler")
@pytest.mark.parametrize(("name", "option", "values"), CHOICES)
def test_numbers_are_not_compiled_in(name, option, values):
    first, *others = (keys_of(name, (64, 128), **{option: value}) for value in values)
    for value, keys in zip(values[1:], others, strict=True):
        assert keys == first, f"{option}={value} is compiled anew after {values[0]}"

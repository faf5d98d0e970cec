"""What type checkers know of the public functions and modules: a user's files, right and wrong."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

import fused_losses
from fused_losses import distributed, functional, names
from fused_losses.losses import softmax_keywords
from fused_losses.registry import LINEAR, LOSSES, TWINS

ROOT = Path(__file__).parents[2]
FILES = [ROOT / "tests/package/types" / name for name in ("right.py", "wrong.py")]

# torch is annotated in parts only: of `Tensor.backward`, mypy does not know what it takes.
CHECKERS = {
    "mypy": ["--strict", "--config-file=", "--follow-imports=silent", "--allow-untyped-calls"],
    "pyright": ["--pythonpath", sys.executable],
}


@pytest.mark.slow
@pytest.mark.parametrize("checker", CHECKERS)
def test_checkers_tell_right_from_wrong(checker):
    pytest.importorskip(checker, reason="the extra `dev` is not installed")
    command = [sys.executable, "-m", checker, *CHECKERS[checker], *map(str, FILES)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    errors = re.findall(r"(\w+\.py):(\d+)(?::\d+ -)?:? error", done.stdout)
    wrong = {
        (path.name, str(number))
        for path in FILES
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if line.endswith("# wrong")
    }
    assert len(wrong) == 10
    assert set(errors) == wrong, done.stdout + done.stderr


def test_names_are_those_of_the_registry():
    assert get_args(names.LossName) == tuple(LOSSES)
    assert set(get_args(names.PatchedName)) == {*TWINS, *LINEAR.values()}


PUBLIC = [
    *(getattr(functional, name) for name in LOSSES),
    *(getattr(fused_losses, loss.module).__init__ for loss in LOSSES.values()),
    functional.linear_cross_entropy,
    functional.linear_loss,
    distributed.cross_entropy,
    distributed.linear_cross_entropy,
]


@pytest.mark.parametrize("function", PUBLIC, ids=lambda f: f"{f.__module__}.{f.__qualname__}")
def test_reductions_are_literals(function):
    divides_by_rows = any(word in function.__qualname__ for word in ("kl_div", "KLDiv", "linear_loss"))
    expected = "DivergenceReductionName" if divides_by_rows else "ReductionName"
    assert inspect.signature(function).parameters["reduction"].annotation == expected


PACKAGE = ROOT / "fused_losses"
OVERLOADED = {
    functional.cross_entropy: "functional.pyi",
    functional.linear_cross_entropy: "functional.pyi",
    distributed.cross_entropy: "distributed/__init__.pyi",
    distributed.linear_cross_entropy: "distributed/__init__.pyi",
    fused_losses.CrossEntropyLoss.__init__: "modules/cross_entropy.py",
}


def overloads(path, name):
    """What the overloads of that name take: the parameters that they name, and further keywords."""
    for definition in ast.walk(ast.parse(path.read_text())):
        if isinstance(definition, ast.FunctionDef) and definition.name == name and definition.args.kwarg:
            keywords = re.fullmatch(r"Unpack\[(\w+)\]", ast.unparse(definition.args.kwarg.annotation))[1]
            definition.args.kwarg = None
            space: dict = {}
            code = f"def function({ast.unparse(definition.args)}): pass"
            exec(f"from __future__ import annotations\n{code}", space)
            named = inspect.signature(space["function"]).parameters.values()
            yield [x for x in named if x.name != "self"], get_type_hints(vars(softmax_keywords)[keywords])


@pytest.mark.parametrize("function", OVERLOADED, ids=lambda f: f"{f.__module__}.{f.__qualname__}")
def test_overloads_take_what_functions_take(function):
    parameters = [x for x in inspect.signature(function).parameters.values() if x.name != "self"]
    found = list(overloads(PACKAGE / OVERLOADED[function], function.__name__))
    assert len(found) == 6
    for named, keywords in found:
        assert named == [x for x in parameters if x.name not in keywords]
        assert set(keywords) < {x.name for x in parameters}


STUBS = {functional: "functional.pyi", distributed: "distributed/__init__.pyi"}


@pytest.mark.parametrize("module", STUBS, ids=lambda module: module.__name__)
def test_stubs_export_what_modules_export(module):
    statements = ast.parse((PACKAGE / STUBS[module]).read_text()).body
    (exported,) = [x.value for x in statements if isinstance(x, ast.Assign) and x.targets[0].id == "__all__"]
    assert set(ast.literal_eval(exported)) == set(module.__all__)

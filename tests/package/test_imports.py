"""Imports among the package's modules go down, from what users see to the ground, and never in a circle."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import fused_losses

ROOT = Path(fused_losses.__file__).parent

# From the top down, as in DESIGN.md: a module may import from its own layer and from those below. A name
# stands for the module or the whole folder.
LAYERS = (
    ("bench", "info", "__init__"),
    ("patch", "integrations", "distributed", "explain", "cache"),
    ("modules",),
    ("functional", "fused_module", "swaps"),
    ("linear",),
    ("losses",),
    ("dispatch",),
    ("autograd", "backends"),
    ("ops", "triton_kernels"),
    ("divisors", "fakes", "architectures"),
    ("operator_checks",),
    ("registry",),
    ("binary_reference", "reference", "samples"),
    ("shapes", "devices", "call", "unpatched"),
    ("modes", "names"),
)
LAYER = {name: len(LAYERS) - i for i, names in enumerate(LAYERS) for name in names}

# Made by pybind11, without imports of its own.
BUILT = "fused_losses._C"


def modules() -> dict[str, Path]:
    """The package's modules by dotted name; a folder's name is that of its __init__."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = ("fused_losses", *path.relative_to(ROOT).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(path: Path, known: dict[str, Path]) -> set[str]:
    """What a module imports of the package, anywhere in it, but for imports that type checkers alone see."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in known or whole == BUILT else node.module)
    return {name for name in found if name.split(".")[0] == "fused_losses"} - {BUILT}


def layer(module: str) -> int:
    parts = module.split(".")
    return LAYER[parts[1] if len(parts) > 1 else "__init__"]


def test_every_module_has_a_layer():
    names = {path.stem for path in ROOT.glob("*.py")} | {
        path.parent.name for path in ROOT.glob("*/__init__.py")
    }
    assert names == set(LAYER)


def test_imports_go_down():
    known = modules()
    upward = [
        f"{module} imports {imported}"
        for module, path in known.items()
        for imported in imports_of(path, known)
        if layer(imported) > layer(module)
    ]
    assert not upward


def test_no_import_cycle():
    """Whoever imports a folder's file from elsewhere imports the folder's __init__, too."""
    known = modules()
    graph = {}
    for module, path in known.items():
        imports = imports_of(path, known)
        folders = {imported.rsplit(".", 1)[0] for imported in imports}
        graph[module] = imports | {folder for folder in folders if not module.startswith(folder)}
    # The package's own __init__ runs before anything else, whoever imports what.
    del graph["fused_losses"]
    order = TopologicalSorter({module: imports - {"fused_losses"} for module, imports in graph.items()})
    assert len(list(order.static_order())) == len(graph)  # raises CycleError


def test_the_test_reads_imports(tmp_path):
    """A function's imports count, a type checker's do not."""
    module = tmp_path / "module.py"
    module.write_text(
        "import torch\n"
        "from fused_losses import modes, _C\n"
        "if TYPE_CHECKING:\n    from fused_losses import patch\n"
        "def f():\n    from fused_losses.losses.plans import PLANS\n"
    )
    assert imports_of(module, modules()) == {"fused_losses.modes", "fused_losses.losses.plans"}

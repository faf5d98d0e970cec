"""The documents: their examples run, every public name is in them, and the site builds without a warning."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from kit.older_torch import makes_documents

import fused_losses
from fused_losses import distributed, functional, modules
from fused_losses.integrations import transformers
from fused_losses.registry import LOSSES

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "docs"), str(ROOT / "benchmarks")]

import pages  # noqa: E402

# index.md is made of README.md.
DOCUMENTS = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").glob("*.md") if p.name != "index.md")]

# A block that cannot run has this line above it: why not.
NOT_RUN = re.compile(r"<!-- not run: \S.* -->")

# What examples take for granted.
PREAMBLE = """
import torch
from torch import nn

torch.manual_seed(0)
model = nn.Linear(16, 10)
inputs = torch.randn(8, 16)
logits = model(inputs)
target = torch.randint(10, (8,))
x = torch.randn(8, 16, requires_grad=True)
y = torch.randn(8, 16)
"""


def examples(text: str) -> tuple[str, int]:
    """The fenced Python of a document, each line where it was so that tracebacks fit; and how many blocks."""
    lines, blocks, inside, above = [], 0, False, ""
    for line in text.splitlines():
        if line.startswith("```python"):
            inside = not NOT_RUN.fullmatch(above)
            blocks += inside
            lines.append("")
        else:
            inside = inside and not line.startswith("```")
            lines.append(line if inside else "")
        above = line or above
    return "\n".join(lines), blocks


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_examples_run(document, tmp_path):
    code, blocks = examples(document.read_text())
    if not blocks:
        return
    if "import transformers" in code or "from transformers" in code:
        pytest.importorskip("transformers")
    script = tmp_path / f"{document.name}.py"
    script.write_text(code)
    # A process of its own: examples set limits and replace torch's functions.
    start = f"{PREAMBLE}\nexec(compile(open({str(script)!r}).read(), {str(document)!r}, 'exec'))"
    done = subprocess.run(
        [sys.executable, "-c", start], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_readme_has_examples():
    assert examples((ROOT / "README.md").read_text())[1] > 0


def test_blocks_are_skipped_only_with_a_reason():
    text = "\n\n".join(
        f"{comment}\n\n```python\nprint(1)\n```" for comment in ("<!-- not run: why -->", "<!-- not run: -->")
    )
    assert examples(text)[1] == 1


@makes_documents
def test_every_public_name_has_its_place():
    text = "\n".join(pages.api().values())
    theirs = "\n".join(line for line in text.splitlines() if line.startswith("Torch's own are here"))
    for name in set(fused_losses.__all__) - {"functional"}:
        assert f":: fused_losses.{name}\n" in text or f"`{name}`" in theirs, name
    for name in functional.__all__:
        assert f":: fused_losses.functional.{name}\n" in text or f"`{name}`" in theirs, name


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_losses_say_formula_arguments_and_errors(loss):
    function = getattr(functional, loss.name)
    text = inspect.getdoc(function)
    assert loss.has_twin == (f":func:`torch.nn.functional.{loss.name}`" in text)
    assert ":math:`" in text or ":func:`triplet_margin_loss`" in text
    _, _, rest = text.partition("\nArgs:\n")
    arguments, _, errors = rest.partition("\nRaises:\n")
    described = re.findall(r"^    (\w+): ", arguments, flags=re.MULTILINE)
    assert described == list(inspect.signature(function).parameters)
    assert re.findall(r"^    (\w+Error): ", errors, flags=re.MULTILINE)
    module = getattr(modules, loss.module)
    assert f":func:`fused_losses.functional.{loss.name}`" in module.__doc__


STRATEGIES = [
    function
    for place in (functional, distributed, transformers)
    for function in vars(place).values()
    if inspect.isfunction(function)
    and not function.__name__.startswith(("_", "check_"))
    and "backward" in inspect.signature(function).parameters
]


@pytest.mark.parametrize("function", STRATEGIES, ids=lambda f: f"{f.__module__}.{f.__name__}")
def test_functions_explain_each_strategy(function):
    text = inspect.getdoc(function)
    if ":func:`causal_lm_loss`" in text:  # which explains it for the others
        text = inspect.getdoc(transformers.causal_lm_loss)
    explained = re.search(r"^    backward: (.*(?:\n      .*)*)", text, flags=re.MULTILINE)[1]
    annotation = inspect.signature(function).parameters["backward"].annotation
    values = get_args(eval(annotation, vars(inspect.getmodule(function))))
    assert len(values) > 1
    for value in values:
        assert f'"{value}"' in explained
    assert len(explained.split()) > 15


@pytest.mark.parametrize("name", sorted(set(fused_losses.__all__) - {"functional"}))
def test_names_have_docstrings(name):
    assert inspect.getdoc(getattr(fused_losses, name))


@makes_documents
@pytest.mark.slow
def test_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("sphinx", reason="the extra `docs` is not installed")
    command = [
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-d",
        str(tmp_path / "doctrees"),
        "docs",
        str(tmp_path / "html"),
    ]
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    site = {path: path.read_text() for path in (tmp_path / "html").rglob("*.html")}
    page = site[tmp_path / "html/api/losses/cross_entropy.html"]
    assert "Parameters" in page and "&gt;&gt;&gt; " in page
    # What is searched for is a word of the page, and not only part of a name.
    assert "label smoothing" in page
    assert "<math " in page and 'href="https://docs.pytorch.org/docs/stable/generated/torch.nn.' in page
    for path, text in site.items():
        # "n." and "(N)" at the start of a line are items of a list in reStructuredText.
        assert not re.search(r'<ol class="(?:lower|upper)', text), path
        # Nothing is fetched from elsewhere: scripts, styles and pictures are files of the site.
        assert not re.search(r'<(?:script|link|img)[^>]* (?:src|href)="(?:https?:)?//', text), path


@makes_documents
def test_every_question_has_one_page():
    """No two pages of the contents have the same title, and all sections of README.md are on one."""
    _, sections = pages.readme()
    titles = [heading for heading in sections if heading not in pages.MERGED]
    made = {**pages.api(), **pages.documents()}
    texts = [text for name, text in made.items() if name.count("/") == 1]
    texts += [path.read_text() for path in DOCUMENTS[1:]]
    titles += [re.search(r"^# (.*)", text, flags=re.MULTILINE)[1] for text in texts]
    assert len(titles) == len(set(titles)), sorted(titles)
    assert set(pages.MERGED) <= set(sections)
    merged = pages.page("# Losses\n\nmore\n", "api/losses")
    assert merged.startswith("# Losses\n") and "](losses/mse_loss.md)" in merged and merged.endswith("more\n")

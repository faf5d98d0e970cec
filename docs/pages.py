"""The pages that are not written by hand: README.md's sections, the repository's documents, and the API.

A link between files of the repository works on GitHub as it is written; `relinked` makes it work here.
"""

from __future__ import annotations

import inspect
import os
import re
from pathlib import Path, PurePosixPath

import torch.nn.functional as torchs
from torch import nn

import fused_losses
from fused_losses import functional, modules
from fused_losses.registry import LINEAR, LOSSES

DOCS = Path(__file__).parent
ROOT = DOCS.parent
GENERATED = ("guide", "api", "project")

# Documents of the repository that are pages as they are.
DOCUMENTS = {
    "DESIGN.md": "project/design",
    "CONTRIBUTING.md": "project/contributing",
    "AGENTS.md": "project/notes",
    "SECURITY.md": "project/security",
    "CHANGELOG.md": "project/changelog",
    "benchmarks/results/README.md": "project/results",
}

# Modules that are public besides `fused_losses` and its `functional`, and the titles of their pages.
SUBMODULES = {"info": "Report"}

# Sections of README.md that are no page of their own, but stand at the top of one about the same question.
MERGED = {"Losses": "api/losses", "Benchmark": "benchmark", "Linear heads": "linear"}

CODE = re.compile(r"(^```.*?^```|`[^`\n]*`)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)\s#]*)(#[^)\s]*)?(?=\))")


def slug(heading: str) -> str:
    """The name of a section, as GitHub has it in links."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def readme() -> tuple[str, dict[str, str]]:
    """What stands before README.md's first section, and the sections by their headings."""
    intro, *sections = re.split(r"^## ", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    return intro, dict(section.split("\n", 1) for section in sections)


def documented(kind: str, name: str, options: str = "") -> str:
    """What autodoc makes of a docstring, which is in reStructuredText."""
    return f"```{{eval-rst}}\n.. auto{kind}:: {name}\n{options}\n```\n"


def toctree(caption: str, *entries: str) -> str:
    """A part of the contents at the left."""
    return "\n".join(["```{toctree}", ":hidden:", f":caption: {caption}", "", *entries, "```\n"])


def section_page(heading: str) -> str:
    """The page that a section of README.md is on."""
    return MERGED.get(heading) or f"guide/{slug(heading)}"


def source_of(docname: str) -> PurePosixPath:
    """The file of the repository that a page's text is from, by which its links are meant."""
    documents = {page: source for source, page in DOCUMENTS.items()}
    if docname == "index" or docname.startswith("guide/"):
        return PurePosixPath("README.md")
    return PurePosixPath(documents.get(docname, f"docs/{docname}.md"))


def page_of(path: str, anchor: str) -> str | None:
    """The page that shows a file of the repository, or a section of it."""
    if path == "README.md":
        for heading, body in readme()[1].items():
            if anchor[1:] == slug(heading):
                return f"{section_page(heading)}.md"
            if anchor[1:] in map(slug, re.findall(r"^#+ (.*)", body, flags=re.MULTILINE)):
                return f"{section_page(heading)}.md{anchor}"
        return "index.md"
    if path in DOCUMENTS:
        return f"{DOCUMENTS[path]}.md{anchor}"
    return f"{path.removeprefix('docs/')}{anchor}" if re.fullmatch(r"docs/.*\.md", path) else None


def page(text: str, docname: str) -> str:
    """A page's text: after its title, the section of README.md about its question, if there is one."""
    text = relinked(text, docname, source_of(docname))
    for heading, body in readme()[1].items():
        if MERGED.get(heading) == docname:
            title, _, rest = text.partition("\n")
            section = relinked(
                re.sub("^##", "#", body, flags=re.MULTILINE), docname, PurePosixPath("README.md")
            )
            if docname == "api/losses":  # a line of its table is a loss, which has a page
                section = re.sub(r"^\| `(\w+)`", _linked, section, flags=re.MULTILINE)
            text = f"{title}\n{section}\n{rest}"
    return text


def _linked(line: re.Match[str]) -> str:
    described = (DOCS / "api" / "losses" / f"{line[1]}.md").exists()
    return f"| [`{line[1]}`](losses/{line[1]}.md)" if described else line[0]


def relinked(text: str, docname: str, source: PurePosixPath) -> str:
    """A text of a file of the repository, whose links lead to pages, and to files where a file is no page."""
    here = os.path.dirname(docname) or "."

    def link(match: re.Match[str]) -> str:
        path, anchor = match[1], match[2] or ""
        is_made = docname.startswith("api/") and source.name != "README.md"
        if is_made or (not path and source.name != "README.md"):
            return match[0]
        target = os.path.normpath(source.parent / path) if path else str(source)
        page = page_of(target, anchor)
        return os.path.relpath(page or ROOT / target, here if page else DOCS / here)

    parts = CODE.split(text)  # every second one is code
    return "".join(part if i % 2 else LINK.sub(link, part) for i, part in enumerate(parts))


def index() -> str:
    """README.md's first words, and all that there is to read."""
    intro, sections = readme()
    contents = [
        toctree("Guide", *(f"guide/{slug(heading)}" for heading in sections if heading not in MERGED)),
        toctree("Topics", *sorted(path.stem for path in DOCS.glob("*.md") if path.name != "index.md")),
        toctree("Reference", *(page.removesuffix(".md") for page in api() if page.count("/") == 1)),
        toctree("Project", *DOCUMENTS.values()),
    ]
    return "\n".join([intro, *contents])


def guide() -> dict[str, str]:
    """A page for each section of README.md, headings one level up."""
    return {
        f"guide/{slug(heading)}.md": f"# {heading}\n{re.sub('^##', '#', body, flags=re.MULTILINE)}"
        for heading, body in readme()[1].items()
        if heading not in MERGED
    }


def api() -> dict[str, str]:
    """A page for each loss, one of all, and pages of what is no loss."""
    theirs = {name for name in functional.__all__ if getattr(functional, name) is getattr(torchs, name, None)}
    theirs |= {name for name in modules.__all__ if getattr(modules, name) is getattr(nn, name, None)}
    ours = [name for name in functional.__all__ if name not in theirs]
    distances = [name for name in ours if name.endswith("_distance")]
    losses = [name for name in ours if name not in distances]
    module_of = {loss.name: loss.module for loss in LOSSES.values()}
    module_of |= {function: module for module, function in LINEAR.items()}
    controls = [name for name in fused_losses.__all__ if name not in {*modules.__all__, "functional"}]

    def functions(*names: str) -> str:
        return "\n".join(documented("function", f"fused_losses.functional.{name}") for name in names)

    pages = {}
    for name in losses:
        module = module_of.get(name)
        described = documented("class", f"fused_losses.{module}") if module else ""
        pages[f"api/losses/{name}.md"] = f"# {name}\n\n{functions(name)}\n{described}"
    pages["api/losses.md"] = (
        f"# Losses\n\n## The functions\n\n{documented('module', 'fused_losses.functional')}\n"
        + toctree("Losses", *(f"losses/{name}" for name in losses))
        + "\nTorch's own are here under the same names, so that an import can be replaced: "
        + f"{', '.join(f'`{name}`' for name in sorted(theirs))}. What they do is torch's to say.\n"
    )
    pages["api/distances.md"] = f"# Distances\n\n{functions(*distances)}"
    pages["api/controls.md"] = "# Controls\n\n" + "\n".join(
        documented(
            "class" if inspect.isclass(getattr(fused_losses, name)) else "function", f"fused_losses.{name}"
        )
        for name in controls
    )
    for name, title in SUBMODULES.items():
        described = documented("module", f"fused_losses.{name}", "   :members:")
        pages[f"api/{name}.md"] = f"# {title}\n\n{described}"
    return pages


def documents() -> dict[str, str]:
    """The repository's documents."""
    return {f"{page}.md": (ROOT / source).read_text() for source, page in DOCUMENTS.items()}


def write() -> None:
    """All pages anew; one whose text is the same stays untouched, so that Sphinx need not read it again."""
    wanted = {"index.md": index(), **guide(), **api(), **documents()}
    for folder in GENERATED:
        for path in (DOCS / folder).rglob("*.md"):
            if str(path.relative_to(DOCS)) not in wanted:
                path.unlink()
    for name, text in wanted.items():
        path = DOCS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)

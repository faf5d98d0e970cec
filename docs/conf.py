"""Sphinx: README.md's sections and the registry become pages (see `pages.py`), docstrings become the API."""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]  # the package that lies beside these documents

import pages  # noqa: E402
from docutils import nodes  # noqa: E402

import fused_losses  # noqa: E402

project = "fused_losses"
author = "the authors of fused_losses"
copyright = author
version = release = fused_losses.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "mathml"]
html_math_renderer = "mathml"
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"fused_losses {release}"
html_static_path = ["static"]
html_css_files = ["tables.css"]

# Headings are the targets of links, as on GitHub.
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures are torch's; what may be passed is in the text
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False

# Where torch describes its functions and classes, each on a page of its name.
TORCH = "https://docs.pytorch.org/docs/stable/generated/{}.html"


def torch_reference(app, environment, node, content):
    """A link to torch's page, without asking the network which there are."""
    name = node.get("reftarget", "")
    if not name.startswith("torch."):
        return None
    link = nodes.reference("", "", content, internal=False, refuri=TORCH.format(name))
    link["reftitle"] = f"{name} in torch's documents"
    return link


def setup(app):
    """Pages are written before Sphinx looks which there are; links between files of the repository follow."""
    pages.write()

    def relink(_, docname, source):
        source[0] = pages.page(source[0], docname)

    app.connect("source-read", relink)
    app.connect("missing-reference", torch_reference)

"""Sphinx: README.md's sections and the registry become pages (see `pages.py`), docstrings become the API."""

from __future__ import annotations

import os
import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]  # the package that lies beside these documents

import pages  # noqa: E402

import fused_losses  # noqa: E402

project = "fused_losses"
author = "the authors of fused_losses"
copyright = author
version = release = fused_losses.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"fused_losses {release}"
html_static_path = []

# Headings are the targets of links, as on GitHub.
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # signatures are torch's; what may be passed is in the text
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False

# Names of torch become links where someone has let the build use the network.
if os.environ.get("DOCS_INTERSPHINX") == "1":
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {"torch": ("https://docs.pytorch.org/docs/stable/", None)}


def setup(app):
    """Pages are written before Sphinx looks which there are; links between files of the repository follow."""
    pages.write()

    def relink(_, docname, source):
        source[0] = pages.relinked(source[0], docname)

    app.connect("source-read", relink)

"""Formulas as MathML, which browsers draw by themselves: without a script, and without a network."""

from __future__ import annotations

import re

from docutils import nodes
from latex2mathml.converter import convert

FUNCTION = re.compile(r"<mi>(log|exp|tanh|cos|max|min)</mi>")
THIN = '<mspace width="0.17em" />'


def _write(display: str):
    """What writes a formula into a page, within a line (`inline`) or by itself (`block`)."""

    def visit(translator, node: nodes.Element) -> None:
        formula = convert(node.astext(), display=display)
        # As TeX sets them: apart from what is beside them.
        translator.body.append(FUNCTION.sub(rf"{THIN}<mi>\1</mi>{THIN}", formula))
        raise nodes.SkipNode

    return visit


def setup(app):
    """Registers the renderer under the name that conf.py chooses."""
    app.add_html_math_renderer("mathml", (_write("inline"), None), (_write("block"), None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}

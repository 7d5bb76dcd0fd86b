"""Sphinx extension: fills the generated parts of pages, draws the cards' pictures, and reads our docstrings."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cards import PICTURES, blocks, fill
from pictures import draw_cards

if TYPE_CHECKING:
    from sphinx.application import Sphinx

NOTEBOOK_LINK = re.compile(r"\[([^\]]+)\]\((?:\.\./)+notebooks/(\w+)\.py\)")  # as it works on a code host
SPECIAL = re.compile(r"([*_|\\])")  # reStructuredText would read these as markup


def fill_page(app: Sphinx, docname: str, source: list[str]) -> None:
    """`source-read`: replace the markers, and lead links to notebooks to their executed pages."""
    if docname.startswith("notebooks/"):
        return
    source[0] = NOTEBOOK_LINK.sub(r"{doc}`\1 </notebooks/\2>`", fill(source[0]))


def rst(lines: list[str]) -> list[str]:
    """One of our docstrings (plain text, `code` in single backticks) as reStructuredText."""
    out: list[str] = []
    for kind, block in blocks("\n".join(lines)):
        if kind == "prose":
            out += [literal_code(line) for line in block]
        elif kind == "doctest":
            out += block
        else:
            out += ["::", "", *(f"    {line.strip()}" for line in block)]
        out.append("")
    return out


def literal_code(line: str) -> str:
    """Code stays code, everything else stays text."""
    parts = line.split("`")
    return "".join(f"``{part}``" if i % 2 else SPECIAL.sub(r"\\\1", part) for i, part in enumerate(parts))


def read_docstring(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """`autodoc-process-docstring`."""
    lines[:] = rst(lines)


def skip_alias(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """`autodoc-skip-member`: Python's own text for the fields of a NamedTuple says nothing."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.connect("builder-inited", lambda app: draw_cards(Path(app.srcdir) / PICTURES))
    app.connect("source-read", fill_page)
    app.connect("autodoc-process-docstring", read_docstring)
    app.connect("autodoc-skip-member", skip_alias)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

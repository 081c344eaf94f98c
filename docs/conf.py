"""Sphinx: the pages of this folder and the API from the docstrings.

sphinx-build -W -b html docs build/docs
sphinx-build -b linkcheck docs build/links
"""

from __future__ import annotations

import re
from typing import Any

from rwkvsts import __version__ as release

project = "rwkvsts"
author = "The rwkvsts maintainers"

extensions = ["sphinx.ext.autodoc", "sphinx.ext.viewcode", "myst_parser"]
html_theme = "furo"
html_title = f"rwkvsts {release}"
exclude_patterns = ["_build"]

myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
# The pages build without the extras: what the integrations derive from is left blank.
autodoc_mock_imports = ["langchain_core", "mteb", "sentence_transformers", "sklearn", "torch"]
autodoc_mock_imports += ["prometheus_client", "ray", "starlette"]

# Anchors of code hosts are made by scripts; a badge's target needs a signed-in browser.
linkcheck_anchors = False
linkcheck_ignore = [r"https://colab\.research\.google\.com/.*"]

REPOSITORY = "https://github.com/rwkvsts/rwkvsts/blob/main"
ROLES = {"": "ivar", "Parameters": "param", "Raises": "raises"}


def fields(section: str, lines: list[str]) -> list[str]:
    """Lines "name : text", with their continuations, as Sphinx's field list; others as they are."""
    if section == "Returns":
        return [":returns:", *(f"    {line}" for line in lines)]
    out: list[str] = []
    for line in lines:
        named = re.match(r"(\w[\w, *]*?) : (.*)", line)
        if named:
            out.append(f":{ROLES[section]} {named[1].replace(', ', ',')}: {named[2]}")
        else:
            out.append(line)
    return out


def sections_to_fields(
    app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Our docstrings have NumPy's sections, where a line says "name : what it is"."""
    out: list[str] = []
    section, held = "", list[str]()
    for line, under in zip(lines, [*lines[1:], ""], strict=True):
        if re.fullmatch(r"-{3,}", line):
            continue
        if re.fullmatch(r"-{3,}", under):
            out += fields(section, held)
            section, held = line.strip(), []
            continue
        held.append(line)
    out += fields(section, held)
    lines[:] = out


def links_to_the_repository(app: Any, page: str, source: list[str]) -> None:
    """What lies outside of this folder is linked to where the project is hosted."""
    source[0] = source[0].replace("](../", f"]({REPOSITORY}/")


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", sections_to_fields)
    app.connect("source-read", links_to_the_repository)

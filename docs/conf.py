"""Sphinx's configuration: a site of the repository's Markdown pages and of the docstrings of the public API.

    uv run --group docs sphinx-build -W --keep-going -c docs . build/site

The source directory is the root of the repository, so that a link between two pages is the same path here as on a
code host. Warnings are errors in the gate: a link to a page, a heading or a file that does not exist is one.
"""

import inspect
import re
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the package of this checkout, whatever is installed

project = "mgdet"
copyright = "mgdet developers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/**", "deploy/*.md", "tests/README.md"]
html_theme = "furo"
html_title = "mgdet"
html_extra_path = ["site"]  # index.html, which leads to docs/index.html
html_show_sourcelink = False
html_copy_source = False

myst_heading_anchors = 4  # the anchors that code hosts give to headings
default_role = "code"  # docstrings write `code` with single backticks
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_class_signature = "separated"
python_use_unqualified_type_names = True


def escape_bars(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Keep the `|x|` of formulas from being taken for a substitution of reStructuredText."""
    lines[:] = [re.sub(r"(`[^`]*`)|\|", lambda found: found[1] or r"\|", line) for line in lines]


def describe_keys(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """List the keys of a configuration class below its docstring, with type, default and meaning."""
    if what != "class" or not issubclass(thing, BaseModel) or not thing.model_fields:
        return
    lines += ["", "Keys:", ""]
    for key, field in thing.model_fields.items():
        default = "required" if field.is_required() else f"default ``{field.get_default(call_default_factory=True)!r}``"
        lines.append(f"- ``{key}`` ({default}){': ' + field.description if field.description else ''}")
    lines.append("")


def leave_out(app: Sphinx, what: str, name: str, thing: Any, skip: bool, options: Any) -> bool | None:
    """Leave out what pydantic adds to a class; its fields are listed by `describe_keys`."""
    return True if name.startswith("model_") or not inspect.getdoc(thing) else None


def setup(app: Sphinx) -> None:
    """Register the hooks above."""
    app.connect("autodoc-process-docstring", escape_bars)
    app.connect("autodoc-process-docstring", describe_keys)
    app.connect("autodoc-skip-member", leave_out)

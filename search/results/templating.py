"""Jinja templates of everything that people read: report, model card, and the dashboard's notes.

What is put into HTML is escaped, so hostile text stays text. In Markdown only the bars in cells of a table are escaped.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

TEMPLATES = Path(__file__).parent / "templates"
NUMBER = re.compile(r"[~+-]?[\d,.]+ ?(%|ms|s|M)?( ±[\d.]+)?( \(\d+\))?( \[[\d., ]+\])?")


def render(template: str, **values: Any) -> str:
    """Fill in one of the files in templates/."""
    return _environment().get_template(template).render(values)


@lru_cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=select_autoescape(["html.jinja"], default=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.tests["a_number"] = lambda cell: NUMBER.fullmatch(cell) is not None
    environment.filters["cell"] = lambda text: str(text).replace("|", "\\|")
    return environment

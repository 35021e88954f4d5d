"""A report's sections as one HTML page or as Markdown.

The page contains everything that it shows and requests nothing from outside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from search.results.templating import render


@dataclass(frozen=True)
class Table:
    """Rows of text below a header, which may be empty; numbers are aligned to the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """A part of a report.

    Attributes:
        text: paragraphs.
        figures: SVG by caption.
        commands: lines to copy.
    """

    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Mapping[str, str] = field(default_factory=dict)
    commands: Sequence[str] = ()


def html(title: str, sections: Sequence[Section], refresh_seconds: int | None = None) -> str:
    """Render sections as an HTML page.

    Args:
        refresh_seconds: how often a browser reloads the page, for a report that is written again and again.
    """
    return render("report.html.jinja", title=title, sections=sections, refresh_seconds=refresh_seconds)


def markdown(title: str, sections: Sequence[Section]) -> str:
    """Render sections as Markdown, without figures."""
    return render("report.md.jinja", title=title, sections=sections)

"""A report as sections, and the sections as one HTML page or as Markdown.

The page holds everything it shows: it asks for nothing from outside, and its figures take the colour of the text around
them, so that they can be read on a light and on a dark screen.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from html import escape
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

INK = "#010203"  # of everything in a figure that takes the colour of the text
STYLE: Any = {
    "svg.fonttype": "none",  # text stays text
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.2,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), INK),
}
NUMBER = re.compile(r"[~+-]?[\d,.]+ ?(%|ms|s|M)?( ±[\d.]+)?( \(\d+\))?( \[[\d., ]+\])?")
CSS = """
:root { color-scheme: light dark; --ink: #1c2430; --paper: #ffffff; --line: #d5dae1; --soft: #f4f6f8; --accent: #0b7285; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #dfe5ec; --paper: #14181d; --line: #39424d; --soft: #1d232a; --accent: #4cc3d9; }
}
body { margin: 2rem auto; padding: 0 1rem; max-width: 62rem; font: 16px/1.5 system-ui, sans-serif; color: var(--ink);
       background: var(--paper); }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); padding-bottom: .3rem; }
table { border-collapse: collapse; margin: 1rem 0; font-size: .9rem; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .7rem; text-align: left; vertical-align: top; }
th { background: var(--soft); } td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
figure { margin: 1.5rem 0; } figure svg { max-width: 100%; height: auto; } figcaption { font-size: .9rem; opacity: .8; }
code, pre { background: var(--soft); border-radius: 4px; padding: .1rem .3rem; } pre { padding: .8rem; overflow-x: auto; }
a { color: var(--accent); }
"""


@dataclass(frozen=True)
class Grid:
    """A table. Cells are text; numbers are set to the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """figures: SVG by caption. commands: lines to copy."""

    title: str
    text: Sequence[str] = ()
    tables: Sequence[Grid] = ()
    figures: Mapping[str, str] = field(default_factory=dict)
    commands: Sequence[str] = ()


def drawing(width: float = 8.0, height: float = 4.2) -> Figure:
    """An empty figure; draw in `figure_style`."""
    return Figure(figsize=(width, height), layout="constrained")


def figure_style() -> AbstractContextManager[None]:
    """In which figures of a page are drawn and saved."""
    return rc_context(STYLE)


def svg(figure: Figure, name: str) -> str:
    """A figure to put into a page. name: leads the ids of its parts, to keep them apart from other figures'."""
    out = io.StringIO()
    with rc_context({"svg.hashsalt": name}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    return text.replace(INK, "currentColor").replace("<svg ", '<svg role="img" ', 1)


def html(title: str, sections: Sequence[Section], refresh_seconds: int | None = None) -> str:
    """One page. refresh_seconds: reload it so often, for a report that is still being written."""
    refresh = f'<meta http-equiv="refresh" content="{refresh_seconds}">' if refresh_seconds else ""
    body = "\n".join(_html_section(section) for section in sections)
    return (
        f'<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">{refresh}\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n<style>{CSS}</style></head>\n'
        f"<body><h1>{escape(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def _html_section(section: Section) -> str:
    parts = [f"<section><h2>{escape(section.title)}</h2>"]
    parts += [f"<p>{escape(text)}</p>" for text in section.text]
    for caption, drawn in section.figures.items():
        parts.append(f"<figure>{drawn}<figcaption>{escape(caption)}</figcaption></figure>")
    parts += [_html_table(table) for table in section.tables]
    if section.commands:
        parts.append(f"<pre>{escape(chr(10).join(section.commands))}</pre>")
    return "\n".join([*parts, "</section>"])


def _html_table(table: Grid) -> str:
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    head = f"<thead><tr>{cells}</tr></thead>" if any(table.header) else ""
    in_columns = bool(head)
    rows = "\n".join("<tr>" + "".join(_html_cell(cell, in_columns) for cell in row) + "</tr>" for row in table.rows)
    return f"<table>{head}<tbody>\n{rows}\n</tbody></table>"


def _html_cell(cell: str, in_column: bool) -> str:
    kind = ' class="number"' if in_column and NUMBER.fullmatch(cell) else ""
    return f"<td{kind}>{escape(cell)}</td>"


def markdown(title: str, sections: Sequence[Section]) -> str:
    """The same without figures."""
    lines = [f"# {title}", ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        for text in section.text:
            lines += [text, ""]
        for table in section.tables:
            lines += [_markdown_row(table.header), "|" + "---|" * len(table.header), *map(_markdown_row, table.rows), ""]
        if section.commands:
            lines += ["```", *section.commands, "```", ""]
    return "\n".join(lines)


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

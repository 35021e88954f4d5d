"""Plotly figures drawn by Matplotlib, as SVG for a page or as a PNG file: Plotly's own export needs a Chrome.

It knows what figures.py uses: points with errors, lines and steps, horizontal bars (grouped or stacked), lines across the
plot and their annotations. In an SVG text takes the colour of the page's text, so it is legible on light and on dark.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import plotly.graph_objects as go
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from search.files import replacing

INK = "#010203"  # replaced by the colour of the page's text
PIXELS = 100  # of a Plotly figure per inch
WIDTH = 8.0  # inches, as a Plotly figure is as wide as the page
DPI = 150
WIDE_LEGEND = 60  # characters that fit beside each other
MARKERS = {"circle": "o", "circle-open": "o", "square": "s", "x": "x"}
STYLES = {"solid": "-", "dash": "--"}
STYLE: Any = {  # Matplotlib types its keys one by one
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.2,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), INK),
}


def svg(figure: go.Figure, name: str) -> str:
    """Render a figure, without its title, to put into a page.

    Args:
        name: starts the ids of its parts, which differ from those of other figures so.
    """
    out = io.StringIO()
    with rc_context({**STYLE, "svg.hashsalt": name, "figure.facecolor": "none", "axes.facecolor": "none"}):
        drawn = Figure(figsize=(WIDTH, figure.layout.height / PIXELS), layout="constrained")
        _draw(figure, drawn.add_subplot())
        _add_legend(drawn, "outside upper left")
        canvas = FigureCanvasSVG(drawn)
        canvas.print_svg(out, metadata={"Date": None})  # type: ignore[no-untyped-call]  # savefig draws twice, once for the layout
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    return text.replace(INK, "currentColor").replace("<svg ", '<svg role="img" ', 1)


def save_png(figures: Sequence[go.Figure], title: str, path: Path) -> None:
    """Render figures side by side, with their legend once."""
    with rc_context(STYLE):
        drawn = Figure(figsize=(WIDTH * len(figures), figures[0].layout.height / PIXELS), layout="constrained")
        for figure, axes in zip(figures, drawn.subplots(1, len(figures), squeeze=False)[0], strict=True):
            _draw(figure, axes)
        drawn.suptitle(title)
        _add_legend(drawn, "outside lower center")  # the title is above
        with replacing(path) as new:
            drawn.savefig(new, dpi=DPI)


def _draw(figure: go.Figure, axes: Axes) -> None:
    layout = figure.layout
    axes.set_xlabel(_text(layout.xaxis.title.text))
    axes.set_ylabel(_text(layout.yaxis.title.text))
    for trace in figure.data:
        if trace.type == "scatter":
            _draw_scatter(trace, axes)
    _draw_bars([trace for trace in figure.data if trace.type == "bar"], layout.barmode == "stack", axes)
    for shape in layout.shapes:
        draw_line, at = (axes.axvline, shape.x0) if shape.x0 == shape.x1 else (axes.axhline, shape.y0)
        draw_line(at, color=shape.line.color, linestyle=STYLES[shape.line.dash or "solid"], linewidth=1)
    for note in layout.annotations:
        axes.annotate(note.text, (note.x, 1), (4, 0), axes.get_xaxis_transform(), "offset points", va="top", color=INK)
    if layout.yaxis.autorange == "reversed":
        axes.invert_yaxis()


def _draw_scatter(trace: Any, axes: Axes) -> None:
    """Points with errors, a line through them, or both."""
    label = trace.name if trace.showlegend is not False else None
    has_markers = "markers" in trace.mode
    if "lines" in trace.mode:
        steps = "steps-post" if trace.line.shape == "hv" else "default"
        width = trace.line.width or 1.5
        axes.plot(
            trace.x, trace.y, color=trace.line.color, linewidth=width, drawstyle=steps, label=None if has_markers else label
        )
    if has_markers:
        _draw_points(trace, label, axes)


def _draw_points(trace: Any, label: str | None, axes: Axes) -> None:
    marker = trace.marker
    x_errors, y_errors = trace.error_x, trace.error_y
    axes.errorbar(
        trace.x,
        trace.y,
        xerr=None if x_errors.array is None else (x_errors.arrayminus, x_errors.array),
        yerr=y_errors.array,
        fmt=MARKERS[marker.symbol or "circle"],
        markersize=0.6 * marker.size,  # pixels to points
        markerfacecolor="none" if (marker.symbol or "").endswith("open") else marker.color,
        color=marker.color,
        alpha=marker.opacity,
        capsize=2,
        elinewidth=1,
        linestyle="none",
        label=label,
    )


def _draw_bars(traces: Sequence[Any], is_stacked: bool, axes: Axes) -> None:
    """Horizontal bars, a row for each category; all traces have the same categories."""
    if not traces:
        return
    categories = list(traces[0].y)
    left = [0.0] * len(categories)
    height = 0.8 if is_stacked else 0.8 / len(traces)
    for index, trace in enumerate(traces):
        offset = 0.0 if is_stacked else (index - (len(traces) - 1) / 2) * height
        rows = [row + offset for row in range(len(categories))]
        label = trace.name if trace.showlegend is not False else None
        axes.barh(rows, trace.x, height, left=left, color=trace.marker.color, label=label)
        if is_stacked:
            left = [start + value for start, value in zip(left, trace.x, strict=True)]
    axes.set_yticks(range(len(categories)), categories)


def _add_legend(drawn: Figure, location: Literal["outside upper left", "outside lower center"]) -> None:
    """Add the legend of all panels, with each label once."""
    handles = {label: handle for axes in drawn.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if labels := list(handles):
        columns = len(labels) if sum(map(len, labels)) <= WIDE_LEGEND else 2
        drawn.legend(list(handles.values()), labels, loc=location, ncols=columns, frameon=False)


def _text(text: str | None) -> str:
    return (text or "").replace("<br>", "\n")

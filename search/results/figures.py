"""The figures of a study as Plotly figures, each drawn here alone: for the dashboard, the report and the exported PNG.

The dashboard shows them as they are; static.py renders them for a page and for a file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import plotly.graph_objects as go

from search.results.analysis import PARTS, Effect, Influence
from search.space.dimensions import describe
from search.study.front import evaluated, front, latest_of_each
from search.study.targets import Target, objectives
from search.study.trial import SAMPLED, TrialRecord, metric_of, on

TEAL, AMBER, BLUE, RED, GREY = "#1f9aaf", "#e08e0b", "#5b7fd6", "#e0566b", "#8a94a3"  # legible on light and on dark
CLEAR, GRID = "rgba(0,0,0,0)", "rgba(138,148,163,0.3)"
PART_COLORS = (GREY, TEAL, AMBER, BLUE, RED)
GAP = 0.1  # of the accuracies' range: distance of networks without an accuracy below the others

Series = Mapping[str, Sequence[float]]
"""Numbers by target."""


def front_figures(trials: Sequence[TrialRecord], targets: Mapping[str, Target]) -> dict[str, go.Figure]:
    """Accuracy over latency, one figure for each target that is an objective."""
    return {name: _front_figure(trials, name, targets) for name in objectives(targets)}


def as_title(text: str) -> str:
    """A text with a capital letter."""
    return text[:1].upper() + text[1:]


def _front_figure(trials: Sequence[TrialRecord], name: str, targets: Mapping[str, Target]) -> go.Figure:
    """Draw the front with its intervals, the networks that it dominates (some by their predicted latency), and below them
    the networks that a limit ruled out before training.
    """
    members = front(trials)
    in_front = {trial.architecture.key for trial in members}
    scored = evaluated(trials)
    baselines = [trial for trial in scored if trial.origin != SAMPLED]
    dominated = [trial for trial in scored if trial.origin == SAMPLED and trial.architecture.key not in in_front]
    latest = [trial for trial in latest_of_each(trials) if name in trial.result.latencies]
    is_curve = len(objectives(targets)) == 1  # with several objectives the front is a surface
    metric = metric_of(trials)
    figure = _figure(f"{as_title(metric)} over latency{on(name, targets)}", _latency_axis(name, targets), metric, height=540)
    bottom = _bottom([trial.accuracy for trial in latest if trial.result.accuracy is not None])

    def add(label: str, group: Sequence[TrialRecord], color: str, symbol: str, **style: Any) -> None:
        if group:
            _add_trials(figure, label, group, name, bottom, color, symbol, **style)

    predicted = [trial for trial in dominated if not trial.result.measured]
    add("predicted", predicted, GREY, "circle", size=5, opacity=0.45, has_errors=False)
    add("dominated", [trial for trial in dominated if trial.result.measured], GREY, "circle-open")
    add("infeasible", [trial for trial in latest if not trial.result.feasible], RED, "x", has_errors=False)
    add("baselines", baselines, AMBER, "square", size=9)
    add("front", members, TEAL, "circle", mode="lines+markers" if is_curve else "markers")
    if (limit_ms := targets[name].limit_ms) is not None:
        figure.add_vline(x=limit_ms, line_dash="dash", line_color=RED, annotation_text=f"budget {limit_ms:g} ms")
    return figure


def hypervolume_figure(volumes: Sequence[float]) -> go.Figure:
    """The hypervolume after each finished trial."""
    figure = _figure("Hypervolume of the front", "finished trials", "share that the front dominates", height=320)
    numbers = list(range(1, len(volumes) + 1))
    line = {"shape": "hv", "color": TEAL}
    return figure.add_scatter(x=numbers, y=list(volumes), mode="lines", line=line, showlegend=False)


def influence_figure(influences: Sequence[Influence], metric: str = "accuracy") -> go.Figure:
    """The share of variance that a dimension explains of each objective, to the left if its highest value lowers that."""
    figure = _figure(
        "What mattered, by objective<br><sup>share of variance explained, over all evaluated networks</sup>"
        "<br><sup>(Hyperparameter Importance: what the best tenth of the trials has in common)</sup>",
        "share of variance; right: the highest value raises the objective, left: it lowers it",
        height=140 + 32 * len(influences),
    )
    dimensions = [influence.dimension for influence in influences]
    _add_effects(figure, metric, dimensions, [influence.accuracy for influence in influences], "+.4f", TEAL)
    targets = list(influences[0].latencies) if influences else []
    for name, color in zip(targets, cycle((AMBER, BLUE, RED)), strict=False):
        effects = [influence.latencies[name] for influence in influences]
        _add_effects(figure, f"latency{on(name, dict.fromkeys(targets))}", dimensions, effects, "+.1%", color)
    return figure.update_layout(barmode="group", yaxis={"autorange": "reversed"})


def stages_figure(networks: Sequence[str], milliseconds: Sequence[Sequence[float]]) -> go.Figure:
    """A bar for each network: its latency in each part, by the block model.

    Args:
        milliseconds: (networks, PARTS).
    """
    figure = _figure("Latency by stage", "ms, by the block model", height=140 + 32 * len(networks))
    for part, color, values in zip(PARTS, PART_COLORS, zip(*milliseconds, strict=True), strict=True):
        figure.add_bar(y=list(networks), x=list(values), orientation="h", name=part, marker_color=color)
    return figure.update_layout(barmode="stack", yaxis={"autorange": "reversed"})


def prediction_figure(predicted_ms: Series, measured_ms: Series) -> go.Figure:
    """Measured latency over what the block model predicted before each measurement."""
    figure = _figure("Predicted and measured latency", "predicted, ms", "measured, ms", height=400)
    values = [value for series in (*predicted_ms.values(), *measured_ms.values()) for value in series]
    ends = [min(values), max(values)]
    figure.add_scatter(x=ends, y=ends, mode="lines", line={"color": GREY, "width": 1}, showlegend=False)
    _add_points(figure, predicted_ms, measured_ms)
    return figure


def drift_figure(trials: Series, slowdowns: Series) -> go.Figure:
    """The anchor's time over its calibrated time, trial by trial."""
    figure = _figure("Drift of the anchor", "trial", "anchor's time<br>over calibrated", height=280)
    figure.add_hline(y=1.0, line_color=GREY, line_width=1)
    _add_points(figure, trials, slowdowns)
    return figure


def time_figure(seconds: Mapping[str, float]) -> go.Figure:
    """The time of a study by part."""
    figure = _figure("Time by part", "minutes", height=120 + 36 * len(seconds))
    minutes = [value / 60 for value in seconds.values()]
    figure.add_bar(y=list(seconds), x=minutes, orientation="h", marker_color=TEAL, showlegend=False)
    return figure.update_layout(yaxis={"autorange": "reversed"})


def _figure(title: str, x: str, y: str = "", height: int = 400) -> go.Figure:
    """An empty figure without a background of its own."""
    axis = {"gridcolor": GRID, "zerolinecolor": GREY}
    return go.Figure(
        layout={
            "title": {"text": title, "y": 0.97, "yanchor": "top"},
            "height": height,
            "xaxis": {"title": x, **axis},
            "yaxis": {"title": y, **axis},
            "font": {"color": GREY},
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
            "margin": {"t": 110, "r": 20, "b": 60},
            "paper_bgcolor": CLEAR,
            "plot_bgcolor": CLEAR,
        }
    )


def _latency_axis(name: str, targets: Mapping[str, Target]) -> str:
    device = targets[name].device
    settings = f"{device['device']}, {device['num_threads']} thread(s), batch {device['batch_size']}"
    return f"latency{on(name, targets)}, ms ({settings})"


def _bottom(accuracies: Sequence[float]) -> float:
    """The height at which networks without an accuracy are drawn."""
    lowest, highest = min(accuracies, default=0.0), max(accuracies, default=1.0)
    return lowest - GAP * (highest - lowest)


def _add_trials(
    figure: go.Figure,
    label: str,
    trials: Sequence[TrialRecord],
    target: str,
    bottom: float,
    color: str,
    symbol: str,
    size: int = 8,
    opacity: float = 1.0,
    has_errors: bool = True,
    mode: str = "markers",
) -> None:
    """Add trials as points; errors are the 95 % confidence interval of the latency and the accuracy's standard error."""
    latencies = [trial.result.latencies[target] for trial in trials]
    accuracies = [trial.result.accuracy for trial in trials]
    errors: dict[str, Any] = {}
    if has_errors:
        above = [latency.high_ms - latency.latency_ms for latency in latencies]
        below = [latency.latency_ms - latency.low_ms for latency in latencies]
        standard_errors = [0.0 if accuracy is None else accuracy.standard_error for accuracy in accuracies]
        errors = {"error_x": {"array": above, "arrayminus": below}, "error_y": {"array": standard_errors}}
    figure.add_scatter(
        x=[latency.latency_ms for latency in latencies],
        y=[bottom if accuracy is None else accuracy.accuracy for accuracy in accuracies],
        text=[_hover_text(trial) for trial in trials],
        mode=mode,
        marker={"size": size, "symbol": symbol, "color": color, "opacity": opacity},
        line={"shape": "hv", "color": color},
        name=label,
        **errors,
    )


def _hover_text(trial: TrialRecord) -> str:
    not_trained = "" if trial.result.accuracy is not None else " (not trained)"
    return f"trial {trial.number}: {describe(trial.architecture)}{not_trained}"


def _add_effects(
    figure: go.Figure, label: str, dimensions: Sequence[str], effects: Sequence[Effect], gain_format: str, color: str
) -> None:
    """Add the signed shares of one objective as bars."""
    figure.add_bar(
        y=list(dimensions),
        x=[effect.share if effect.gain >= 0 else -effect.share for effect in effects],
        hovertext=[f"{effect.gain:{gain_format}} {label}" for effect in effects],
        orientation="h",
        name=label,
        marker_color=color,
    )


def _add_points(figure: go.Figure, x: Series, y: Series) -> None:
    """Add a group of points for each target."""
    for name, color in zip(x, cycle((TEAL, AMBER, BLUE, RED)), strict=False):
        marker = {"size": 6, "color": color}
        figure.add_scatter(x=list(x[name]), y=list(y[name]), mode="markers", marker=marker, name=name, showlegend=len(x) > 1)

"""The figures of a report: matplotlib drawings as SVG, legible on light and dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from search.results.analysis import PARTS, Influence
from search.results.page import INK, drawing, figure_style, svg
from search.study.targets import FIRST
from search.study.trial import TrialRecord

TEAL, GREY, RED, AMBER, BLUE = "#1f9aaf", "#8a94a3", "#e0566b", "#d08c2a", "#5b7fd6"
PART_COLORS = (GREY, TEAL, AMBER, BLUE, RED)


def front_figure(
    members: Sequence[TrialRecord],
    dominated: Sequence[TrialRecord],
    baselines: Sequence[TrialRecord],
    budget_ms: float | None,
) -> str:
    """Accuracy over latency with standard errors and 95 % intervals."""
    with figure_style():
        figure = drawing(8, 5.4)
        axes = figure.add_subplot()
        predicted = [one for one in dominated if not one.result.latencies[FIRST].measured]
        axes.plot(*_points(predicted), ".", color=GREY, alpha=0.45, label="dominated, latency predicted")
        _with_errors(axes, [one for one in dominated if one.result.latencies[FIRST].measured], GREY, "o", "dominated")
        _with_errors(axes, baselines, AMBER, "s", "the authors' pattern and the ends of the space")
        _with_errors(axes, members, TEAL, "o", "front")
        if not any(one.result.latencies for one in members):  # a staircase on one device, on several a surface
            axes.step(*_points(members), where="post", color=TEAL)
        if budget_ms is not None:
            axes.axvline(budget_ms, color=RED, linestyle="--", label=f"budget, {budget_ms:g} ms")
        axes.set_xlabel("latency, ms")
        axes.set_ylabel("accuracy")
        figure.legend(loc="outside upper left", ncols=2, frameon=False)
        return svg(figure, "front")


def _points(trials: Sequence[TrialRecord]) -> tuple[list[float], list[float]]:
    return [one.result.latencies[FIRST].latency_ms for one in trials], [one.accuracy for one in trials]


def _with_errors(axes: object, trials: Sequence[TrialRecord], color: str, marker: str, label: str) -> None:
    latencies = [one.result.latencies[FIRST] for one in trials]
    axes.errorbar(  # type: ignore[attr-defined]
        *_points(trials),
        xerr=[[one.latency_ms - one.low_ms for one in latencies], [one.high_ms - one.latency_ms for one in latencies]],
        yerr=[one.result.accuracy.standard_error for one in trials if one.result.accuracy],
        fmt=marker, markersize=5, capsize=2, color=color, label=label, linestyle="none",
    )  # fmt: skip


def progress_figure(volumes: Sequence[float]) -> str:
    """Hypervolume after each finished trial."""
    with figure_style():
        figure = drawing(8, 3)
        axes = figure.add_subplot()
        axes.step(range(1, len(volumes) + 1), volumes, where="post", color=TEAL)
        axes.set_xlabel("finished trials")
        axes.set_ylabel("hypervolume")
        return svg(figure, "progress")


def influence_figure(influences: Sequence[Influence]) -> str:
    """Two bars for each dimension."""
    with figure_style():
        figure = drawing(8, 0.5 + 0.42 * len(influences))
        axes = figure.add_subplot()
        rows = range(len(influences))
        axes.barh([row - 0.2 for row in rows], [one.accuracy for one in influences], 0.36, color=TEAL, label="accuracy")
        axes.barh([row + 0.2 for row in rows], [one.latency for one in influences], 0.36, color=AMBER, label="latency")
        axes.set_yticks(list(rows), [one.dimension for one in influences])
        axes.invert_yaxis()
        axes.set_xlabel("share of the variance that its values explain by themselves")
        figure.legend(loc="outside upper left", ncols=2, frameon=False)
        return svg(figure, "influence")


def stages_figure(names: Sequence[str], milliseconds: Sequence[Sequence[float]]) -> str:
    """A bar for each network: the rest of the network first, then each stage."""
    with figure_style():
        figure = drawing(8, 0.8 + 0.36 * len(names))
        axes = figure.add_subplot()
        left = [0.0] * len(names)
        for label, color, widths in zip(PARTS, PART_COLORS, zip(*milliseconds, strict=True), strict=True):
            axes.barh(list(names), widths, left=left, color=color, label=label)
            left = [start + width for start, width in zip(left, widths, strict=True)]
        axes.invert_yaxis()
        axes.set_xlabel("latency by the block model, ms")
        figure.legend(loc="outside upper left", ncols=5, frameon=False)
        return svg(figure, "stages")


def prediction_figure(predicted: Sequence[float], measured: Sequence[float]) -> str:
    """What the block model said before each measurement."""
    with figure_style():
        figure = drawing(5, 4)
        axes = figure.add_subplot()
        ends = [min(*predicted, *measured), max(*predicted, *measured)]
        axes.plot(ends, ends, color=INK, linewidth=0.8)
        axes.plot(predicted, measured, "o", markersize=4, color=TEAL)
        axes.set_xlabel("predicted, ms")
        axes.set_ylabel("measured, ms")
        return svg(figure, "prediction")


def drift_figure(numbers: Sequence[int], slowdowns: Sequence[float]) -> str:
    """The anchor's time over its calibrated time, trial by trial: what ratios cancel."""
    with figure_style():
        figure = drawing(8, 2.6)
        axes = figure.add_subplot()
        axes.plot(numbers, slowdowns, ".", color=TEAL)
        axes.axhline(1.0, color=INK, linewidth=0.8)
        axes.set_xlabel("trial")
        axes.set_ylabel("anchor's time\nover calibrated")
        return svg(figure, "drift")


def time_figure(seconds: Mapping[str, float]) -> str:
    """Where the time went."""
    with figure_style():
        figure = drawing(8, 0.8 + 0.4 * len(seconds))
        axes = figure.add_subplot()
        axes.barh(list(seconds), [value / 60 for value in seconds.values()], color=TEAL)
        axes.invert_yaxis()
        axes.set_xlabel("minutes")
        return svg(figure, "time")

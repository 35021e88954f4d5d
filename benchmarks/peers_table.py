"""Curves of the samplers that benchmarks.peers compares: a table and a figure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

OURS = "ours"
CHECKPOINTS = (20, 40, 80, 150, 250)  # evaluations

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """Gains of an arm, over evaluations and over time.

    Attributes:
        gains: (seeds, evaluations).
        seconds: at the end of each evaluation, (seeds, evaluations).
    """

    gains: Vector
    seconds: Vector

    @property
    def end(self) -> float:
        """Median gain over seeds after the last evaluation."""
        return float(np.median(self.gains[:, -1]))

    def until(self, gain: float) -> tuple[float, float]:
        """Number of evaluations, and median seconds, until the median over seeds keeps a gain; inf if it never does."""
        lasting = np.minimum.accumulate(np.median(self.gains, axis=0)[::-1])[::-1]
        if lasting[-1] < gain:
            return math.inf, math.inf
        first = int((lasting >= gain).argmax())
        return first + 1.0, float(np.median(self.seconds[:, first]))


def show(console: Console, curves: dict[str, Curve]) -> None:
    """Print where the arms stand after some evaluations, when each is as good as at its end, and when ours is.

    An arm is as good as a gain once it has it and keeps it.
    """
    num_seeds, num_trials = next(iter(curves.values())).gains.shape
    checkpoints = [number for number in CHECKPOINTS if number < num_trials] + [num_trials]
    title = f"Gain, 0: LITv2 pattern, 1: best known front; mean ± standard deviation of {num_seeds} seeds"
    shown = Table(title=title, title_justify="left")
    numbers = [f"after {number}" for number in checkpoints]
    for header in ("arm", *numbers, "as good as at its end after", "ours as good after"):
        shown.add_column(header, justify="left" if header == "arm" else "right")
    for arm, curve in curves.items():
        means, deviations = curve.gains.mean(axis=0), deviation(curve.gains)
        cells = [f"{means[number - 1]:.3f} ±{deviations[number - 1]:.3f}" for number in checkpoints]
        sooner = (
            "" if arm == OURS or OURS not in curves else until_text(curves[OURS].until(curve.end), curve.until(curve.end))
        )
        shown.add_row(arm, *cells, until_text(curve.until(curve.end)), sooner)
    console.print(shown)


def until_text(until: tuple[float, float], other: tuple[float, float] | None = None) -> str:
    """A number of evaluations and of seconds in words, with the shares of another one's."""
    number, seconds = until
    if math.isinf(number):
        return "never"
    shares = "" if other is None or math.isinf(other[0]) else f", {number / other[0]:.2f} and {seconds / other[1]:.2f} of it"
    return f"{number:.0f} in {seconds:.0f} s{shares}"


def deviation(gains: Vector) -> Vector:
    """Standard deviation over seeds, (evaluations,); 0 for a single seed."""
    return gains.std(axis=0, ddof=1) if len(gains) > 1 else np.zeros(gains.shape[1])


def plot(curves: dict[str, Curve], path: Path) -> None:
    """Mean gains over evaluations and over time, with their standard deviations."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    by_number, by_time = figure.subplots(1, 2, sharey=True)
    for arm, curve in curves.items():
        mean, error = curve.gains.mean(axis=0), deviation(curve.gains)
        for axes, x in ((by_number, np.arange(1, len(mean) + 1.0)), (by_time, np.median(curve.seconds, axis=0))):
            (line,) = axes.plot(x, mean, label=arm)
            axes.fill_between(x, mean - error, mean + error, alpha=0.15, color=line.get_color())
    by_number.set_xlabel("evaluations")
    by_number.set_ylim(-0.05, 1.05)
    by_number.set_ylabel("gain over the pattern, 1 = best known front")
    by_time.set_xlabel("simulated seconds")
    by_time.set_xscale("log")
    for axes in (by_number, by_time):
        axes.grid(alpha=0.3)
    by_number.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)

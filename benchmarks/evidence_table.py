"""Curves of accuracy over latency and intervals of their differences, as the table and figure of `benchmarks.evidence`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from search.latency.base import Latency

ARMS = (
    "front of the search",
    "LITv2 pattern at every width",
    "front of a random search",
    "most multiply-accumulates",
    "timm",
)
GRID = 20
NUM_RESAMPLES = 2000
DTYPE = "float32"


@dataclass(frozen=True)
class Measured:
    """A network that was trained and measured.

    Args:
        name: What it is.
        latencies: By dtype.
        correct: Which test images each seed classifies correctly, (seeds, images).
        validation: Mean accuracy on validation images.
        num_params: Number of parameters.
        seconds: Mean time of a training.
    """

    name: str
    latencies: Mapping[str, Latency]
    correct: NDArray[np.bool_]
    validation: float
    num_params: int
    seconds: float

    @property
    def accuracies(self) -> list[float]:
        """Test accuracy of each seed."""
        return [float(seed.mean()) for seed in self.correct]


@dataclass(frozen=True)
class Difference:
    """How far one curve is above another, at latencies that both reach; arrays over these latencies.

    Args:
        latencies_ms: The latencies.
        value: Difference of accuracies.
        low, high: 95 % interval, by a bootstrap over seeds and test images.
    """

    latencies_ms: NDArray[np.float64]
    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def curve(latencies_ms: Sequence[float], accuracies: Sequence[float], grid_ms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Interpolate accuracy over the logarithm of latency.

    A network that is no more accurate than a faster one is passed over: nobody would take it.

    Args:
        latencies_ms: Of each network.
        accuracies: Of each network.
        grid_ms: Latencies within the range of the networks'.
    """
    order = np.argsort(latencies_ms)
    best = np.maximum.accumulate(np.asarray(accuracies)[order])
    return np.interp(np.log(grid_ms), np.log(np.asarray(latencies_ms)[order]), best)


def difference(
    first: Sequence[Measured], second: Sequence[Measured], seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> Difference | None:
    """Compare two curves at `GRID` latencies at equal ratios; None if there is no latency that both reach."""
    spans = [(min(times), max(times)) for times in (milliseconds(first), milliseconds(second))]
    low_ms, high_ms = max(low for low, _ in spans), min(high for _, high in spans)
    if low_ms >= high_ms:
        return None
    grid_ms = np.geomspace(low_ms, high_ms, GRID)
    rng = np.random.default_rng(seed)

    def gap(weights: NDArray[np.float64] | None) -> NDArray[np.float64]:
        curves = [curve(milliseconds(arm), [resampled(network, weights, rng) for network in arm], grid_ms) for arm in arms]
        return curves[0] - curves[1]

    arms, num_images = (first, second), first[0].correct.shape[1]
    draws = np.array(
        [gap(rng.multinomial(num_images, np.full(num_images, 1 / num_images)) / num_images) for _ in range(num_resamples)]
    )
    low, high = np.quantile(draws, (0.025, 0.975), axis=0)
    return Difference(grid_ms, gap(None), low, high)


def milliseconds(arm: Sequence[Measured]) -> list[float]:
    return [network.latencies[DTYPE].latency_ms for network in arm]


def resampled(network: Measured, weights: NDArray[np.float64] | None, rng: np.random.Generator) -> float:
    """Accuracy of a network on weighted test images, with seeds drawn with replacement; None for all as they are."""
    if weights is None:
        return float(network.correct.mean())
    seeds = rng.integers(len(network.correct), size=len(network.correct))
    return float((network.correct[seeds].mean(0) * weights).sum())


def show(console: Console, arms: Mapping[str, Sequence[Measured]], account: Sequence[str]) -> None:
    """Print every network, and the differences between the first arm and the others."""
    table = Table("network", "float32, ms [95 % CI]", "int8, ms", "file, MB", "memory, MB", "test accuracy", "training, min")
    for arm, networks in arms.items():
        table.add_section()
        table.add_row(f"[bold]{arm}[/bold]")
        for network in sorted(networks, key=lambda each: each.latencies[DTYPE].latency_ms):
            table.add_row(*row(network))
    console.print(table)
    for line in account:
        console.print(line, highlight=False)
    first, *others = arms
    for other in others:
        console.print(summary(first, other, arms), highlight=False, soft_wrap=True)


def row(network: Measured) -> list[str]:
    """Cells of a network."""
    latency, int8 = network.latencies[DTYPE], network.latencies.get("int8")
    spread = f" ±{statistics.stdev(network.accuracies):.4f}" if len(network.accuracies) > 1 else ""
    sizes = (latency.resources.get(name) for name in ("file_mb", "peak_memory_mb"))
    return [
        network.name,
        rf"{latency.latency_ms:.3f} \[{latency.low_ms:.3f}, {latency.high_ms:.3f}]",
        "-" if int8 is None else f"{int8.latency_ms:.3f}",
        *("-" if size is None else f"{size:.2f}" for size in sizes),
        f"{statistics.fmean(network.accuracies):.4f}{spread}",
        f"{network.seconds / 60:.0f}",
    ]


def summary(first: str, other: str, arms: Mapping[str, Sequence[Measured]]) -> str:
    """How far the first arm is above another one, in words."""
    compared = difference(arms[first], arms[other]) if arms[first] and arms[other] else None
    if compared is None:
        return f"{first} and {other} reach no common latency"
    above, below = int((compared.low > 0).sum()), int((compared.high < 0).sum())
    start, end = compared.latencies_ms[[0, -1]]
    return (
        f"{first} minus {other}, from {start:.2f} to {end:.2f} ms: {compared.value.mean():+.4f} in the mean; the 95 % "
        f"interval is above zero at {above} and below it at {below} of {GRID} latencies"
    )


def draw(arms: Mapping[str, Sequence[Measured]], path: Path) -> None:
    """Draw accuracy over latency."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for (arm, networks), marker in zip(arms.items(), "osD^x", strict=True):
        ordered = sorted(networks, key=lambda network: network.latencies[DTYPE].latency_ms)
        means = [statistics.fmean(network.accuracies) for network in ordered]
        errors = [statistics.stdev(network.accuracies) if len(network.accuracies) > 1 else 0.0 for network in ordered]
        line = "none" if arm == ARMS[-1] else "-"
        axes.errorbar(milliseconds(ordered), means, errors, marker=marker, linestyle=line, capsize=2, label=arm)
    axes.set_xscale("log")
    axes.set_xlabel("latency, ms")
    axes.set_ylabel("test accuracy")
    axes.grid(alpha=0.2)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)

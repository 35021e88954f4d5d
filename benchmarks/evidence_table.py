"""`python -m benchmarks.evidence_table RECORD`: table and figure of `benchmarks.evidence`, from what it recorded.

Curves of accuracy over latency are compared, with intervals of their differences.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from search import one_line
from search.latency.base import Latency
from search.results.view import make_console

ARMS = (
    "front of the search",
    "LITv2 pattern at every width",
    "front of a random search",
    "most multiply-accumulates",
    "timm",
)
ARMS_FILE, LATENCIES_FILE, TRAINED = "arms.json", "latencies.json", "trained"  # in the folder of the benchmark
GRID = 20
NUM_RESAMPLES = 2000
DTYPE = "float32"


@dataclass(frozen=True)
class Measured:
    """A network that was trained and measured.

    Args:
        key: Identifies the network; arms may share it.
        name: Description for the table.
        latencies: By dtype, "float32" at least.
        correct: True for each test image that a seed's network classifies correctly, (seeds, images).
        validation: Mean accuracy on validation images.
    """

    key: str
    name: str
    latencies: Mapping[str, Latency]
    correct: NDArray[np.bool_]
    validation: float

    @property
    def latency_ms(self) -> float:
        return self.latencies[DTYPE].latency_ms

    @property
    def accuracies(self) -> list[float]:
        """Test accuracy of each seed."""
        return [float(of_seed.mean()) for of_seed in self.correct]


@dataclass(frozen=True)
class Difference:
    """Difference between the curves of two arms, at latencies that both reach.

    Args:
        latencies_ms: The latencies, (grid,).
        value: Differences of test accuracy, (grid,).
        low, high: 95 % intervals, by a bootstrap over seeds and test images, (grid,).
        mean: Mean difference, with the ends of its interval.
    """

    latencies_ms: NDArray[np.float64]
    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    mean: tuple[float, float, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path, help="of benchmarks.evidence --record")
    parser.add_argument("--plot", type=Path, help="file for the figure")
    options = parser.parse_args()
    try:
        arms, account = read(zipfile.Path(options.record))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        parser.exit(2, f"error: {options.record} is not a record of benchmarks.evidence: {one_line(error)}\n")
    show(make_console(), arms, account)
    if options.plot is not None:
        draw(arms, options.plot)


def read(folder: Path | zipfile.Path) -> tuple[dict[str, list[Measured]], list[str]]:
    """Read the networks of each arm, and lines about the searches.

    All networks count with the seeds that every LITv2 was trained with; a model of timm may lack some. Networks without any
    training are left out.
    """
    picked, latencies = json.loads((folder / ARMS_FILE).read_text(encoding="utf-8")), read_latencies(folder)
    networks = {network["key"]: network for of_arm in picked["arms"].values() for network in of_arm}
    trained = {key: read_trained(folder, key) for key in networks if key in latencies}
    num_seeds = min(len(seeds) for key, seeds in trained.items() if seeds and not networks[key]["model"])
    measured = {
        key: Measured(
            key,
            networks[key]["name"],
            latencies[key],
            np.stack([correct for correct, _ in seeds[:num_seeds]]),
            statistics.fmean(validation for _, validation in seeds[:num_seeds]),
        )
        for key, seeds in trained.items()
        if seeds[:num_seeds]
    }
    arms = {
        arm: [measured[network["key"]] for network in of_arm if network["key"] in measured]
        for arm, of_arm in picked["arms"].items()
    }
    return arms, picked["account"]


def read_latencies(folder: Path | zipfile.Path) -> dict[str, dict[str, Latency]]:
    """Read latencies by network and dtype."""
    stored = json.loads((folder / LATENCIES_FILE).read_text(encoding="utf-8"))
    return {key: {name: Latency.from_summary(each) for name, each in by.items()} for key, by in stored.items()}


def read_trained(folder: Path | zipfile.Path, key: str) -> list[tuple[NDArray[np.bool_], float]]:
    """Read which test images a network classifies correctly, (images,), and its validation accuracy: of seeds 0, 1, ..."""
    trained: list[tuple[NDArray[np.bool_], float]] = []
    while (file := folder / result_file(key, len(trained))).exists():
        with file.open("rb") as stream, np.load(io.BytesIO(stream.read())) as result:
            trained.append((result["correct"], float(result["validation"])))
    return trained


def result_file(key: str, seed: int) -> str:
    """The file of a training: which test images are classified correctly, and the accuracy on validation images."""
    return f"{TRAINED}/{key}-{seed}.npz"


def chosen(arm: Sequence[Measured]) -> list[Measured]:
    """Return the networks that a user would choose, by validation images: each more accurate than all faster ones."""
    best: list[Measured] = []
    for network in sorted(arm, key=lambda network: network.latency_ms):
        if not best or network.validation > best[-1].validation:
            best.append(network)
    return best


def curve(
    networks: Sequence[Measured], accuracies: Mapping[str, float], grid_ms: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Interpolate accuracy over the logarithm of latency.

    Args:
        networks: By rising latency.
        accuracies: Of each network, by key.
        grid_ms: Latencies within the range of the networks'.
    """
    logs = np.log([network.latency_ms for network in networks])
    return np.interp(np.log(grid_ms), logs, [accuracies[network.key] for network in networks])


def difference(
    first: Sequence[Measured], second: Sequence[Measured], seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> Difference | None:
    """Compare the chosen networks of two arms at `GRID` latencies at equal ratios.

    Networks that both arms have count as one: they have the same seeds in each resample. Of n seeds n - 1 are drawn, which
    gives the variance of their mean its size; two seeds at least are needed.

    Returns:
        The difference; None if there is no latency that both arms reach, or a network has a single seed.
    """
    arms = chosen(first), chosen(second)
    networks = {network.key: network for arm in arms for network in arm}
    low_ms, high_ms = max(arm[0].latency_ms for arm in arms), min(arm[-1].latency_ms for arm in arms)
    if low_ms >= high_ms or any(len(network.correct) < 2 for network in networks.values()):
        return None
    grid_ms, rng = np.geomspace(low_ms, high_ms, GRID), np.random.default_rng(seed)

    def gap(accuracies: Mapping[str, float]) -> NDArray[np.float64]:
        return curve(arms[0], accuracies, grid_ms) - curve(arms[1], accuracies, grid_ms)

    value = gap({key: float(network.correct.mean()) for key, network in networks.items()})
    draws = np.array([gap(resampled(networks, rng)) for _ in range(num_resamples)])
    low, high = np.quantile(draws, (0.025, 0.975), axis=0)
    low_mean, high_mean = np.quantile(draws.mean(1), (0.025, 0.975))
    return Difference(grid_ms, value, low, high, (float(value.mean()), float(low_mean), float(high_mean)))


def resampled(networks: Mapping[str, Measured], rng: np.random.Generator) -> dict[str, float]:
    """Draw test accuracies as other seeds, and other test images for all networks alike, might have given them."""
    num_images = next(iter(networks.values())).correct.shape[1]
    weights = rng.multinomial(num_images, np.full(num_images, 1 / num_images)) / num_images
    accuracies = {}
    for key, network in networks.items():
        seeds = rng.integers(len(network.correct), size=len(network.correct) - 1)
        accuracies[key] = float((network.correct[seeds].mean(0) * weights).sum())
    return accuracies


def show(console: Console, arms: Mapping[str, Sequence[Measured]], account: Sequence[str]) -> None:
    """Print every network, and the differences between the first arm and the others."""
    table = Table("network", "float32, ms [95 % CI]", "int8, ms", "file, MB", "memory, MB", "validation", "test accuracy")
    for arm, networks in arms.items():
        table.add_section()
        table.add_row(f"[bold]{arm}[/bold]")
        for network in sorted(networks, key=lambda network: network.latency_ms):
            table.add_row(*row(network))
    console.print(table)
    for line in account:
        console.print(line, highlight=False)
    first, *others = arms
    for other in others:
        console.print(summary(first, other, arms), highlight=False, markup=False, soft_wrap=True)


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
        f"{network.validation:.4f}",
        f"{statistics.fmean(network.accuracies):.4f}{spread}",
    ]


def summary(first: str, other: str, arms: Mapping[str, Sequence[Measured]]) -> str:
    """How far the first arm is above another one, in words."""
    compared = difference(arms[first], arms[other]) if arms[first] and arms[other] else None
    if compared is None:
        return f"{first} and {other}: no latency that both reach, or a single seed"
    above, below = int((compared.low > 0).sum()), int((compared.high < 0).sum())
    start, end = compared.latencies_ms[[0, -1]]
    mean, low, high = compared.mean
    return (
        f"{first} minus {other}, from {start:.2f} to {end:.2f} ms: {mean:+.4f} [{low:+.4f}, {high:+.4f}] in the mean; "
        f"the 95 % interval is above zero at {above} and below it at {below} of {GRID} latencies"
    )


def draw(arms: Mapping[str, Sequence[Measured]], path: Path) -> None:
    """Draw accuracy over latency."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for (arm, networks), marker in zip(arms.items(), "osD^x", strict=True):
        ordered = sorted(networks, key=lambda network: network.latency_ms)
        means = [statistics.fmean(network.accuracies) for network in ordered]
        errors = [statistics.stdev(network.accuracies) if len(network.accuracies) > 1 else 0.0 for network in ordered]
        line = "none" if arm == ARMS[-1] else "-"
        axes.errorbar(
            [network.latency_ms for network in ordered], means, errors, marker=marker, linestyle=line, capsize=2, label=arm
        )
    axes.set_xscale("log")
    for set_formatter in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        set_formatter(StrMethodFormatter("{x:g}"))
    axes.set_xlabel("latency, ms")
    axes.set_ylabel("test accuracy")
    axes.grid(alpha=0.2)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()

"""`python -m benchmarks.latency_fidelity`: do two measurements of a network agree, idle and on a busy machine?

Networks drawn from the default space are measured in three passes: twice on the machine as it is, then with two
processes that keep its cores busy. In each pass every network is timed by the mean of wall times (what once-for-all, Archai
and DyNAS-T do), by their median, and by this project's paired protocol, one right after the other. The second and the third
pass are compared with the first: Kendall's tau of the two rankings, and the relative difference of the two latencies. An
prediction interval holds if it contains the other pass's latency; both passes' intervals count.

`--plot FILE` also fits the block model to the first 20 networks of the first pass and draws what it says of the others.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import hydra
import optuna
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import kendalltau

from models.architecture import Architecture
from models.litv2 import build as build_network
from search.commands.cli import build, conf_dir, target_of
from search.latency.base import Calibration, Latency
from search.latency.block_model import BlockModel
from search.latency.machine import keep_to
from search.latency.runtime import DTYPES
from search.latency.target import PairedTarget
from search.space.space import Space

REPETITIONS = 40
WARMUP_RUNS = 5
SETTLE_SECONDS = 0.2
BURN = "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    sum(range(100_000))"  # ends with this process
METHODS = ("mean of wall times", "median of wall times", "paired with the anchor")
NUM_FITTED = 20  # networks that the block model sees before it predicts


@dataclass(frozen=True)
class Measured:
    """One network in one pass: latency in milliseconds and seconds spent, by method; and the paired measurement whole."""

    latency_ms: dict[str, float]
    seconds: dict[str, float]
    paired: Latency


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=32, help="how many (default 32)")
    parser.add_argument("--seed", type=int, default=6, help="of drawing the networks (default 6)")
    parser.add_argument("--latency", default="onnxruntime", help="target (default onnxruntime)")
    parser.add_argument("--plot", type=Path, help="picture of the block model's predictions; needs over 20 networks")
    parser.add_argument("overrides", nargs="*", help="of the configuration, as latency.cuda_graph=true")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = hydra.compose("config", ["+search=cpu_latency", f"latency={arguments.latency}", *arguments.overrides])
    space: Space = build(config.space)
    target: PairedTarget = target_of(config.latency, img_size=config.deploy.img_size, in_chans=1, num_classes=100)()
    networks = draw(space, arguments.networks, arguments.seed)
    calibration = target.calibrate(space.anchor(), (space.anchor(), space.smallest(), space.largest()))
    rng = random.Random(arguments.seed)
    first = measure_all(networks, target, calibration, rng, "first pass")
    second = measure_all(networks, target, calibration, rng, "second pass")
    with busy_processes(2):
        busy = measure_all(networks, target, calibration, rng, "busy pass")
    console = Console(width=120)
    device = target.fingerprint()
    console.print(
        f"{len(networks)} networks on {device['device']}, {device['backend']}, batch {target.settings.batch_size}, "
        f"{target.settings.num_threads} thread(s)"
    )
    console.print(compare("as it is", first, second))
    console.print(compare("two busy processes", first, busy))
    if len(networks) > NUM_FITTED:
        predict(networks, first, target.settings.img_size, arguments.plot, console)


def draw(space: Space, number: int, seed: int) -> list[Architecture]:
    """Different random architectures of a space."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    networks: dict[str, Architecture] = {}
    while len(networks) < number:
        architecture = space.suggest(study.ask())
        networks[architecture.key] = architecture
    return list(networks.values())


def measure_all(
    networks: list[Architecture], target: PairedTarget, calibration: Calibration, rng: random.Random, title: str
) -> list[Measured]:
    """Every network by every method, in random order."""
    results: dict[str, Measured] = {}
    mean, median, ours = METHODS
    for network in track(rng.sample(networks, len(networks)), title):
        start = time.perf_counter()
        times_ms = wall_times_ms(network, target)
        naive_seconds = time.perf_counter() - start
        paired = target.measure(network, calibration)
        results[network.key] = Measured(
            {mean: statistics.mean(times_ms), median: statistics.median(times_ms), ours: paired.latency_ms},
            {mean: naive_seconds, median: naive_seconds, ours: paired.prepare_seconds + paired.seconds},
            paired,
        )
    return [results[network.key] for network in networks]


def wall_times_ms(network: Architecture, target: PairedTarget) -> list[float]:
    """What a plain benchmark loop sees, whatever the target: PyTorch eager."""
    settings = target.settings
    torch.set_num_threads(settings.num_threads)
    if hasattr(os, "sched_setaffinity"):
        keep_to(range(os.cpu_count() or 1))  # the paired protocol has pinned this process,
        time.sleep(SETTLE_SECONDS)  # and others have made room for it; a plain loop finds them where they like to be
    device, dtype = "cuda" if target.runtime.name == "cuda" else "cpu", DTYPES[settings.dtype]
    model = build_network(network, in_chans=settings.in_chans, num_classes=settings.num_classes).eval().to(device, dtype)
    side = network.side(settings.img_size)
    x = torch.rand(settings.batch_size, settings.in_chans, side, side).to(device, dtype)
    times = []
    with torch.inference_mode():
        for _ in range(WARMUP_RUNS):
            model(x)
        for _ in range(REPETITIONS):
            start = time.perf_counter()
            model(x)
            if device == "cuda":
                torch.cuda.synchronize()
            times.append((time.perf_counter() - start) * 1e3)
    return times


@contextmanager
def busy_processes(number: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(number)]
    try:
        time.sleep(1)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def compare(title: str, first: list[Measured], other: list[Measured]) -> Table:
    table = Table(title=title, title_justify="left")
    for header in ("method", "Kendall tau", "median error", "90th percentile", "s a network", "95 % prediction holds"):
        table.add_column(header, justify="left" if header == "method" else "right")
    for method in METHODS:
        before, after = ([m.latency_ms[method] for m in measured] for measured in (first, other))
        errors = sorted(abs(b / a - 1) for a, b in zip(before, after, strict=True))
        pairs = [pair for a, b in zip(first, other, strict=True) for pair in ((a.paired, b.paired), (b.paired, a.paired))]
        predicted = [(a.estimate.prediction_interval(), b) for a, b in pairs]
        contained = [interval.low <= b.latency_ms <= interval.high for interval, b in predicted]
        table.add_row(
            method,
            f"{kendalltau(before, after).statistic:.3f}",
            f"{statistics.median(errors):.1%}",
            f"{errors[math.ceil(0.9 * len(errors)) - 1]:.1%}",
            f"{statistics.mean(m.seconds[method] for m in other):.2f}",
            f"{sum(contained) / len(contained):.0%} of {len(contained)}" if method == METHODS[-1] else "",
        )
    return table


def predict(
    networks: list[Architecture], measured: list[Measured], img_size: int, plot: Path | None, console: Console
) -> None:
    """Fit the block model to the first networks and compare what it says of the others with their measurement."""
    model = BlockModel(img_size)
    for network, measurement in list(zip(networks, measured, strict=True))[:NUM_FITTED]:
        model.observe(network, measurement.paired.latency_ms)
    others = list(zip(networks, measured, strict=True))[NUM_FITTED:]
    predicted = [prediction.latency_ms for network, _ in others if (prediction := model.predict(network))]
    seen = [measurement.paired for _, measurement in others]
    errors = [abs(a / b.latency_ms - 1) for a, b in zip(predicted, seen, strict=True)]
    console.print(
        f"block model after {NUM_FITTED} networks, on the other {len(others)}: median error "
        f"{statistics.median(errors):.1%}, largest {max(errors):.1%}, tau "
        f"{kendalltau(predicted, [latency.latency_ms for latency in seen]).statistic:.3f}"
    )
    if plot is None:
        return
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 5), layout="constrained")
    axes = figure.add_subplot()
    bounds = [
        [latency.latency_ms - latency.low_ms for latency in seen],
        [latency.high_ms - latency.latency_ms for latency in seen],
    ]
    axes.errorbar(
        [latency.latency_ms for latency in seen], predicted, xerr=bounds, fmt="o", markersize=5, capsize=2, color="#0b7285"
    )
    span = [min(predicted), max(predicted)]
    axes.plot(span, span, color="#9aa5b1")
    axes.set_xlabel("measured latency, ms, with its 95 % confidence interval")
    axes.set_ylabel(f"predicted after {NUM_FITTED} other networks, ms")
    axes.set_title(f"Block model: median error {statistics.median(errors):.1%} on {len(others)} networks")
    axes.grid(alpha=0.3)
    figure.savefig(plot, dpi=120)


if __name__ == "__main__":
    main()

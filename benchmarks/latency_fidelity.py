"""`python -m benchmarks.latency_fidelity`: do two measurements of a network agree, idle and on a busy machine?

Networks drawn from the default space are measured in three passes: twice on the machine as it is, then with two
processes that keep its cores busy. In each pass every network is timed by the mean of wall times (what once-for-all, Archai
and DyNAS-T do), by their median, and by this project's paired protocol, one right after the other. The second and the third
pass are compared with the first: Kendall's tau of the two rankings, and the relative difference of the two latencies.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import hydra
import optuna
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import kendalltau

from models.architecture import Architecture
from models.litv2 import build as build_network
from search.cli import build, conf_dir, plain
from search.latency.base import Calibration, Latency
from search.latency.cpu import CpuTarget, cpu_name
from search.space import Space

REPETITIONS = 40
WARMUP_RUNS = 5
METHODS = ("mean of wall times", "median of wall times", "paired with the anchor")


@dataclass(frozen=True)
class Measured:
    """One network in one pass: latency in milliseconds and seconds spent, by method; and the paired measurement whole."""

    latency_ms: dict[str, float]
    seconds: dict[str, float]
    paired: Latency


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=16, help="how many (default 16)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = hydra.compose("config", ["+search=cpu_latency"])
    space: Space = build(config.space)
    settings = plain(config.latency)
    settings.pop("budget_ms")
    target: CpuTarget = build(settings)(img_size=config.deploy.img_size, in_chans=1, num_classes=100)
    networks = draw(space, arguments.networks, arguments.seed)
    calibration = target.calibrate(space.anchor())
    rng = random.Random(arguments.seed)
    first = measure_all(networks, target, calibration, rng, "first pass")
    second = measure_all(networks, target, calibration, rng, "second pass")
    with busy_processes(2):
        busy = measure_all(networks, target, calibration, rng, "busy pass")
    console = Console()
    console.print(f"{len(networks)} networks on {cpu_name()}, batch {target.batch_size}, {target.num_threads} thread(s)")
    console.print(compare("as it is", first, second))
    console.print(compare("two busy processes", first, busy))


def draw(space: Space, number: int, seed: int) -> list[Architecture]:
    """Different random architectures of a space."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    found: dict[str, Architecture] = {}
    while len(found) < number:
        architecture = space.suggest(study.ask())
        found[architecture.key] = architecture
    return list(found.values())


def measure_all(
    networks: list[Architecture], target: CpuTarget, calibration: Calibration, rng: random.Random, title: str
) -> list[Measured]:
    """Every network by every method, in random order."""
    results: dict[str, Measured] = {}
    for network in track(rng.sample(networks, len(networks)), title):
        start = time.perf_counter()
        times_ms = wall_times_ms(network, target)
        naive_seconds = time.perf_counter() - start
        paired = target.measure(network, calibration)
        mean, median, ours = METHODS
        results[network.key] = Measured(
            {mean: statistics.mean(times_ms), median: statistics.median(times_ms), ours: paired.latency_ms},
            {mean: naive_seconds, median: naive_seconds, ours: paired.seconds},
            paired,
        )
    return [results[network.key] for network in networks]


def wall_times_ms(network: Architecture, target: CpuTarget) -> list[float]:
    """What a plain benchmark loop sees."""
    torch.set_num_threads(target.num_threads)
    model = build_network(network, in_chans=target.in_chans, num_classes=target.num_classes).eval()
    x = torch.rand(target.batch_size, target.in_chans, target.img_size, target.img_size)
    times = []
    with torch.inference_mode():
        for _ in range(WARMUP_RUNS):
            model(x)
        for _ in range(REPETITIONS):
            start = time.perf_counter()
            model(x)
            times.append((time.perf_counter() - start) * 1e3)
    return times


@contextmanager
def busy_processes(number: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        time.sleep(1)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def compare(title: str, one: list[Measured], other: list[Measured]) -> Table:
    table = Table(title=title, title_justify="left")
    for header in ("method", "Kendall tau", "median error", "90th percentile", "s a network", "interval holds"):
        table.add_column(header, justify="left" if header == "method" else "right")
    for method in METHODS:
        before, after = ([m.latency_ms[method] for m in measured] for measured in (one, other))
        errors = sorted(abs(b / a - 1) for a, b in zip(before, after, strict=True))
        held = [a.paired.low_ms <= b.paired.latency_ms <= a.paired.high_ms for a, b in zip(one, other, strict=True)]
        table.add_row(
            method,
            f"{kendalltau(before, after).statistic:.3f}",
            f"{statistics.median(errors):.1%}",
            f"{errors[int(0.9 * (len(errors) - 1))]:.1%}",
            f"{statistics.mean(m.seconds[method] for m in other):.2f}",
            f"{sum(held) / len(held):.0%}" if method == METHODS[-1] else "",
        )
    return table


if __name__ == "__main__":
    main()

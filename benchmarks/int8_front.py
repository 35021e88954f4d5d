"""`python -m benchmarks.int8_front`: does a search for int8 find better int8 networks than a search for float32?

For each seed, `+search=onnx_latency` and `+search=onnx_int8_latency` run to their end with one supernet. The networks of
both fronts become int8 files, which are measured in turn, and classify the test images, which no search reads. About 12
minutes a seed on two cores. Searches that are cut off go on when the command is run again.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import hydra
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.commands import run_command
from benchmarks.contenders import target_for
from benchmarks.evidence import absolute
from benchmarks.int8 import correct_images, onnx_files
from models.architecture import Architecture
from models.litv2 import build as build_network
from search import UserError
from search.accuracy.supernet import SupernetEvaluator
from search.commands.accuracy import evaluator_factory, training_images
from search.commands.cli import build, conf_dir
from search.latency.target import Network
from search.results.view import make_console
from search.study.front import front
from search.study.pareto import mean_accuracy
from search.study.storage import reading
from search.study.trial import TrialRecord, finished_trials

SEARCHES = {"float32": "onnx_latency", "int8": "onnx_int8_latency"}


@dataclass(frozen=True)
class Confirmed:
    """A network as an int8 file.

    Args:
        accuracy: Test accuracy of the file.
        latency_ms: Latency of the file.
    """

    accuracy: float
    latency_ms: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("outputs/int8_front"), help="where the searches are kept")
    parser.add_argument("--seeds", type=int, default=3, help="pairs of searches")
    parser.add_argument("--max-seconds", type=float, default=3.0, help="time limit for measuring a network")
    parser.add_argument("overrides", nargs="*", help="of the searches, such as data=digits")
    options = parser.parse_args()
    options.overrides = [absolute(override) for override in options.overrides]  # before the folder changes
    options.folder.mkdir(parents=True, exist_ok=True)
    os.chdir(options.folder)
    console = make_console()
    try:
        pairs = [compare(seed, options, console) for seed in range(options.seeds)]
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    show(pairs, console)


def compare(seed: int, options: argparse.Namespace, console: Console) -> dict[str, list[Confirmed]]:
    """Search for both dtypes, and confirm both fronts as int8 files. Raises: UserError if a search fails."""
    fronts: dict[str, list[TrialRecord]] = {}
    for dtype, search in SEARCHES.items():
        name = f"{dtype}-{seed}"
        settings = [f"+search={search}", f"study.name={name}", f"study.seed={seed}", *options.overrides]
        run_command("run", settings, Path.cwd(), console)
        with reading(name, f"sqlite:///{Path.cwd()}/outputs/{name}/study.db") as study:
            fronts[dtype] = front(finished_trials(study))
        if not fronts[dtype]:
            raise UserError(f"the search {name} found no network; raise study.n_trials")
    networks = {trial.architecture.key: trial.architecture for members in fronts.values() for trial in members}
    confirmed = confirm(list(networks.values()), seed, options, console)
    return {dtype: [confirmed[trial.architecture.key] for trial in members] for dtype, members in fronts.items()}


def confirm(
    architectures: Sequence[Architecture], seed: int, options: argparse.Namespace, console: Console
) -> dict[str, Confirmed]:
    """Compute the test accuracy of each network's int8 file, and time all of them in turn. Returns them by key."""
    with hydra.initialize_config_dir(str(conf_dir()), version_base=None):
        cfg = hydra.compose("config", [f"+search={SEARCHES['int8']}", f"study.seed={seed}", *options.overrides])
    data = training_images(cfg, None)
    evaluator = cast(SupernetEvaluator, evaluator_factory(cfg, data, None)())
    batches = evaluator.data.test_dataloader()
    accuracies = {
        architecture.key: float(
            correct_images(onnx_files(architecture, evaluator, seed)[1], batches, architecture.img_size).mean()
        )
        for architecture in track(architectures, "classifying the test images", console=console)
    }
    target = target_for(data, "int8", options.max_seconds)
    calibration = target.calibrate(build(cfg.space).anchor())
    ready = []
    for architecture in track(architectures, "converting", console=console):
        make = partial(build_network, architecture, in_chans=data.in_chans, num_classes=data.num_classes)
        side = architecture.side(data.img_size)
        ready.append(target.make_ready(Network(make, (data.in_chans, side, side))))
    latencies = target.time(ready, calibration)
    return {
        architecture.key: Confirmed(accuracies[architecture.key], latency.latency_ms)
        for architecture, latency in zip(architectures, latencies, strict=True)
    }


def show(pairs: Sequence[Mapping[str, Sequence[Confirmed]]], console: Console) -> None:
    """Print, for each seed, how accurate the best network of each front is, over latencies at equal ratios."""
    table = Table("seed", "from, ms", "to, ms", *(f"search for {dtype}" for dtype in SEARCHES), "networks", "difference")
    differences = []
    for seed, fronts in enumerate(pairs):
        low, high = shared_range(fronts)
        means = {dtype: mean_of(members, low, high) for dtype, members in fronts.items()}
        differences.append(means["int8"] - means["float32"])
        sizes = " and ".join(str(len(members)) for members in fronts.values())
        cells = [f"{value:.4f}" for value in means.values()]
        table.add_row(str(seed), f"{low:.3f}", f"{high:.3f}", *cells, sizes, f"{differences[-1]:+.4f}")
    console.print(table)
    error = statistics.stdev(differences) / len(differences) ** 0.5 if len(differences) > 1 else float("nan")
    console.print(
        "test accuracy of the best int8 file within a latency, in the mean over latencies at equal ratios: the search for "
        f"int8 has {statistics.fmean(differences):+.4f} ±{error:.4f} (standard error over {len(differences)} pairs)"
    )


def mean_of(members: Sequence[Confirmed], low_ms: float, high_ms: float) -> float:
    """Return the accuracy of the best network within a latency, in the mean over latencies at equal ratios."""
    if low_ms == high_ms:  # a single network, in both fronts
        return max(each.accuracy for each in members)
    return mean_accuracy([each.accuracy for each in members], [each.latency_ms for each in members], [low_ms], [high_ms])


def shared_range(fronts: Mapping[str, Sequence[Confirmed]]) -> tuple[float, float]:
    """Return the least latency at which all fronts have a network, and the largest of any network."""
    latencies = [np.array([each.latency_ms for each in members]) for members in fronts.values()]
    return max(float(each.min()) for each in latencies), max(float(each.max()) for each in latencies)


if __name__ == "__main__":
    main()

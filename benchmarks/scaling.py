"""`python -m benchmarks.scaling`: what the coordinator costs with many trials, many of them at a time.

Everything is the real thing but for the engine (simulation.py). Each case has a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import subprocess
import sys
import tempfile
import time
import zlib
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from uuid import uuid4

import numpy as np
import optuna
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.simulation import RecordingView, SimulatedEngine, configuration, coordinator
from models.architecture import Architecture
from search.accuracy.base import Accuracy
from search.latency.base import Latency
from search.latency.block_model import features
from search.latency.estimate import Estimate
from search.results.view import LogView
from search.study.coordinator import Coordinator
from search.study.evaluate import Rules
from search.study.storage import open_study

MEASURE_SECONDS = 0.05
IMG_SIZE = 32
WINDOW = 100  # trials to average over
LIMIT_MS = 10.0


@dataclass(frozen=True)
class Case:
    """What is run.

    Attributes:
        num_parallel: trainings at a time.
        storage: a URL, or sqlite for a file of its own.
        seconds: that a training takes, on average.
    """

    num_trials: int
    num_parallel: int
    sampler: str = "surrogate"
    storage: str = "sqlite"
    seconds: float = 30.0

    @property
    def name(self) -> str:
        return f"{self.num_parallel}-{self.sampler}-{self.storage.partition(':')[0]}"


@dataclass(frozen=True)
class Memory:
    """Memory of this process.

    Attributes:
        resident_mib: all that is in memory.
        own_mib: without the pages of files, such as libraries, which processes share and the system can drop; the same
            where psutil does not tell.
    """

    resident_mib: float
    own_mib: float

    @classmethod
    def now(cls) -> Memory:
        info = psutil.Process().memory_info()
        return cls(info.rss / 2**20, (info.rss - getattr(info, "shared", 0)) / 2**20)

    def __str__(self) -> str:
        return f"{self.resident_mib:,.0f} MiB, own {self.own_mib:,.0f}"


@dataclass(frozen=True)
class Result:
    """What a case cost.

    Attributes:
        ms_per_trial: of the coordinator, by WINDOW trials.
        lost: share of the training workers' time in which they had no work while the coordinator was busy.
        busy: share of the time in which the coordinator was busy.
        resume_seconds: from opening the finished study to the next trial.
        memory_before, memory: of the coordinator's process before the first trial, and after the last.
    """

    case: Case
    ms_per_trial: list[float]
    lost: float
    busy: float
    resume_seconds: float
    memory_before: Memory
    memory: Memory


def drawn(architecture: Architecture, low: float, high: float) -> float:
    """A number that depends on the network alone."""
    return low + (high - low) * (zlib.crc32(architecture.key.encode()) % 997) / 997


def measured(architecture: Architecture) -> Latency:
    """Smooth in the network, with an error that no model predicts."""
    num_blocks = sum(stage.depth for stage in architecture.stages)
    ms = 0.2 + float(features(architecture, IMG_SIZE)[6]) / 4e5 + 0.2 * num_blocks
    ms *= drawn(architecture, 0.97, 1.03)
    return Latency(Estimate(ms, 0.01, 100.0), 40, 10, True, MEASURE_SECONDS)


def trained(architecture: Architecture, seconds: float) -> Accuracy:
    """Smooth in the network, with an error that no model predicts.

    seconds: that a training takes, on average.
    """
    size = architecture.embed_dim * sum(stage.depth for stage in architecture.stages)
    return Accuracy(
        min(0.99, 1 - 1 / math.sqrt(size) + drawn(architecture, -0.02, 0.02)),
        3000,
        0,
        seconds * drawn(architecture, 0.5, 1.5),
    )


def engine_of(case: Case) -> SimulatedEngine:
    return SimulatedEngine(case.num_parallel, measured, partial(trained, seconds=case.seconds))


def start_search(study: optuna.Study, folder: Path, case: Case, engine: SimulatedEngine, view: LogView) -> Coordinator:
    """The coordinator of a case."""
    cfg = configuration(f"sampler={case.sampler}")
    return coordinator(study, folder, cfg, engine, view, Rules(seed=0), LIMIT_MS, num_classes=100)


def run(case: Case, folder: Path) -> Result:
    """Fill a study, then open it again as another process would."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = f"sqlite:///{folder / 'study.db'}" if case.storage == "sqlite" else case.storage
    name = f"scaling-{uuid4()}"
    engine = engine_of(case)
    busy = [0.0]  # seconds of the coordinator at the end of each trial
    view = RecordingView(lambda trial: busy.append(engine.busy))
    started = start_search(open_study(name, url, create=True), folder, case, engine, view)
    before = Memory.now()
    engine.start_clock()
    assert asyncio.run(started.run(case.num_trials, None))
    spent = np.diff(busy)
    spent = spent[: max(1, len(spent) - engine.num_trials)]  # after them others are begun
    windows = [float(spent[i : i + WINDOW].mean() * 1e3) for i in range(0, len(spent), WINDOW)]
    memory = Memory.now()
    lost = engine.idle / (case.num_parallel * engine.now)
    start = time.perf_counter()
    again = engine_of(case)
    study = open_study(name, url, create=True)
    resumed = start_search(study, folder, case, again, LogView())
    resumed.recover()
    resumed.writer.ask()
    seconds = time.perf_counter() - start
    if case.storage != "sqlite":
        optuna.delete_study(study_name=name, storage=study._storage)
    return Result(case, windows, lost, engine.busy / engine.now, seconds, before, memory)


def cases(options: argparse.Namespace) -> list[Case]:
    """Many trials with the default sampler, fewer with the others, other storages and fewer at a time."""
    most, widest = max(options.trials), max(options.parallel)
    some = min(options.trials)
    listed = [Case(most if parallel == widest else some, parallel) for parallel in options.parallel]
    listed += [Case(some, widest, sampler) for sampler in ("random", "tpe", "nsga2")]
    return listed + [Case(some, widest, storage=url) for url in options.storage]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs=2, default=[1000, 10000], help="the more with most at a time")
    parser.add_argument("--parallel", type=int, nargs="+", default=[1, 8, 64], help="trainings at a time")
    parser.add_argument("--storage", nargs="*", default=[], help="further storage URLs, such as postgresql://...")
    parser.add_argument("--plot", type=Path, default=Path("outputs/scaling.png"))
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(asdict(run(Case(**json.loads(options.case)), Path(folder)))))
        return
    console = Console(width=180)
    results = []
    for case in cases(options):
        console.print(f"{case.name}: {case.num_trials} trials")
        command = [sys.executable, "-m", "benchmarks.scaling", "--case", json.dumps(asdict(case))]
        result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
        memories = {name: Memory(**result[name]) for name in ("memory_before", "memory")}
        results.append(Result(**{**result, "case": case, **memories}))
    show(console, results)
    plot(results, options.plot)
    console.print(f"saved {options.plot}")


def show(console: Console, results: list[Result]) -> None:
    table = Table(title="Stand-ins of 15 to 45 s; the coordinator on this machine", title_justify="left")
    headers = (
        "at a time",
        "trials",
        "sampler",
        "storage",
        "ms a trial",
        "at the end",
        "workers' time lost",
        "coordinator busy",
    )
    for header in (*headers, "resume", "memory at first", "at last"):
        table.add_column(header, justify="right")
    for result in results:
        case = result.case
        table.add_row(
            str(case.num_parallel),
            f"{case.num_trials:,}",
            case.sampler,
            case.storage.partition(":")[0],
            f"{np.mean(result.ms_per_trial):.0f}",
            f"{result.ms_per_trial[-1]:.0f}",
            f"{result.lost:.2%}",
            f"{result.busy:.1%}",
            f"{result.resume_seconds:.1f} s",
            str(result.memory_before),
            str(result.memory),
        )
    console.print(table)


def plot(results: list[Result], path: Path) -> None:
    """Time of the coordinator for a trial, over the trials so far."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for result in results:
        numbers = [WINDOW * (index + 1) for index in range(len(result.ms_per_trial))]
        label = f"{result.case.sampler}, {result.case.storage.partition(':')[0]}, {result.case.num_parallel} at a time"
        axes.plot(numbers, result.ms_per_trial, label=label)
    axes.set_xlabel("finished trials")
    axes.set_ylabel("coordinator, ms a trial")
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()

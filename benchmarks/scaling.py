"""`python -m benchmarks.scaling`: what the coordinator costs with many trials, many of them at a time.

Everything is the real thing, storage, sampler, dashboard notes and files, but for the engine: its measurements and
trainings give known results, and take their time on a clock that nobody waits for. What the coordinator takes passes on
that clock too, so that a worker which is free while the coordinator is busy stands idle as it would. Each case has a
process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import itertools
import json
import logging
import math
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from uuid import uuid4

import hydra
import numpy as np
import optuna
import psutil
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from models.architecture import Architecture
from models.complexity import cost
from search.accuracy.base import Accuracy, AccuracyEvaluator, Progress
from search.commands.cli import build, conf_dir
from search.commands.run import sampler_of, save_samples
from search.engine.base import Fingerprint
from search.latency.base import Calibration, Latency
from search.latency.block_model import BlockModel, features
from search.latency.estimate import Estimate
from search.results.dashboard import DashboardPublisher
from search.results.view import LogView
from search.space import Space
from search.study.coordinator import Coordinator, SearchProgress
from search.study.evaluate import Rules
from search.study.locks import NullLock, RetryPolicy
from search.study.storage import open_study
from search.study.targets import FIRST, Target, save_targets
from search.study.trial import TrialRecord
from search.study.writer import StudyWriter

MEASURE_SECONDS = 0.05
IMG_SIZE = 32
WINDOW = 100  # trials to average over
SETTLING_STEPS = 20  # of the event loop, in which everybody comes to wait: a trial takes a handful from event to event
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


@dataclass
class SimulatedEngine:
    """Training workers and a measuring one, on a clock of their own, which is driven by an asyncio task.

    Attributes:
        now: the time, as of when the coordinator last gave way.
        idle: seconds in which training workers had no work while the coordinator was busy, all together.
        busy: seconds of the coordinator.
    """

    num_parallel: int
    train_seconds: float
    now: float = 0.0
    idle: float = 0.0
    busy: float = 0.0
    _seen: float = field(default_factory=time.perf_counter)
    _free: list[float] = field(default_factory=list)  # of each free training worker: how busy the coordinator was till then
    _measuring: asyncio.Lock = field(default_factory=asyncio.Lock)
    _training: asyncio.Semaphore = field(init=False)
    _events: list[tuple[float, int, asyncio.Future[float]]] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _driver: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self._free = [0.0] * self.num_parallel
        self._training = asyncio.Semaphore(self.num_parallel)

    @property
    def num_trials(self) -> int:
        return 2 * self.num_parallel if self.num_parallel > 1 else 1

    async def measure(self, target: str, architecture: Architecture, calibration: Calibration) -> Latency:
        async with self._measuring:
            await self._take(MEASURE_SECONDS)
        return measured(architecture)

    async def train(self, architecture: Architecture, seed: int, progress: Progress) -> Accuracy:
        async with self._training:
            self._let_time_pass()
            self.idle += self.busy - self._free.pop(0)
            end = await self._take(self.train_seconds * drawn(architecture, 0.5, 1.5))
            self._free.append(self.busy - (self.now - end))  # since then nothing else has passed
        return trained(architecture)

    async def fingerprint(self, role: str) -> Fingerprint:
        return {}

    def expect(self, role: str, fingerprint: Fingerprint) -> None:
        """Nothing changes here."""

    async def calibrate(self, target: str, anchor: Architecture, repeated: Sequence[Architecture] = ()) -> Calibration:
        return Calibration(anchor, Estimate(1.0, 0.005, 100.0), 100)

    async def train_shared_weights(self, seed: int, progress: Progress) -> bytes:
        return b""

    def use_evaluator(self, make_evaluator: Callable[[], AccuracyEvaluator]) -> None:
        """Nothing is trained here."""

    def close(self) -> None:
        """Nothing was started."""

    def start_clock(self) -> None:
        self._seen = time.perf_counter()

    def clock(self) -> float:
        return self.now + time.perf_counter() - self._seen

    async def _take(self, seconds: float) -> float:
        """Let this much time pass. Returns when it was over."""
        self._let_time_pass()
        ended: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), ended))
        if self._driver is None or self._driver.done():
            self._driver = asyncio.create_task(self._drive())
        return await ended

    async def _drive(self) -> None:
        """Jump to the next event whenever everyone waits for one."""
        while self._events:
            for _ in range(SETTLING_STEPS):
                await asyncio.sleep(0)
            self._let_time_pass()
            end, _, ended = heapq.heappop(self._events)
            self.now = max(self.now, end)
            ended.set_result(end)
            self._seen = time.perf_counter()

    def _let_time_pass(self) -> None:
        """Count what the coordinator has taken since the clock was last looked at."""
        now = time.perf_counter()
        self.now += now - self._seen
        self.busy += now - self._seen
        self._seen = now


def drawn(architecture: Architecture, low: float, high: float) -> float:
    """A number that depends on the network alone."""
    return low + (high - low) * (zlib.crc32(architecture.key.encode()) % 997) / 997


def measured(architecture: Architecture) -> Latency:
    """Smooth in the network, with an error that no model predicts."""
    num_blocks = sum(stage.depth for stage in architecture.stages)
    ms = 0.2 + float(features(architecture, IMG_SIZE)[6]) / 4e5 + 0.2 * num_blocks
    ms *= drawn(architecture, 0.97, 1.03)
    return Latency(Estimate(ms, 0.01, 100.0), 40, 10, True, 1.0)


def trained(architecture: Architecture) -> Accuracy:
    """Smooth in the network, with an error that no model predicts."""
    size = architecture.embed_dim * sum(stage.depth for stage in architecture.stages)
    return Accuracy(min(0.99, 1 - 1 / math.sqrt(size) + drawn(architecture, -0.02, 0.02)), 3000, 0, 1.0)


class BusyView(LogView):
    """Records how busy the coordinator had been at the end of each trial."""

    def __init__(self, engine: SimulatedEngine) -> None:
        super().__init__(logging.DEBUG)
        self.engine = engine
        self.busy: list[float] = []

    def trial_finished(self, trial: TrialRecord, progress: SearchProgress) -> None:
        super().trial_finished(trial, progress)
        self.busy.append(self.engine.busy)


def configuration(case: Case) -> DictConfig:
    with hydra.initialize_config_dir(str(conf_dir()), version_base=None):
        return hydra.compose("config", ["+search=cpu_latency", f"sampler={case.sampler}"])


def coordinator(study: optuna.Study, folder: Path, cfg: DictConfig, engine: SimulatedEngine, view: LogView) -> Coordinator:
    space: Space = build(cfg.space)
    calibration = Calibration(space.anchor(), Estimate(1.0, 0.005, 100.0), 100)
    device = {
        "device": "simulated", "backend": "none", "num_threads": 1, "batch_size": 1,
        "input_size": f"1x{IMG_SIZE}x{IMG_SIZE}", "num_classes": 100,
    }  # fmt: skip
    targets = {FIRST: Target(calibration, device=device, reference_ms=LIMIT_MS)}
    save_targets(study, targets)
    dashboard = DashboardPublisher(study, folder)
    return Coordinator(
        writer=StudyWriter(study, space, targets, sampler_of(cfg), 0, dashboard.annotate, RetryPolicy(0.0, NullLock())),
        engine=engine,
        targets=targets,
        rules=Rules(seed=0),
        models={FIRST: BlockModel(IMG_SIZE)},
        cost=partial(cost, in_chans=1, num_classes=100, img_size=IMG_SIZE),
        save_samples=partial(save_samples, folder / "latency", targets),
        publish=dashboard.publish_front,
        view=view,
        max_consecutive_failures=5,
        clock=engine.clock,
    )


def run(case: Case, folder: Path) -> Result:
    """Fill a study, then open it again as another process would."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = f"sqlite:///{folder / 'study.db'}" if case.storage == "sqlite" else case.storage
    name = f"scaling-{uuid4()}"
    engine = SimulatedEngine(case.num_parallel, case.seconds)
    view, cfg = BusyView(engine), configuration(case)
    started = coordinator(open_study(name, url, create=True), folder, cfg, engine, view)
    before = Memory.now()
    engine.start_clock()
    assert asyncio.run(started.run(case.num_trials, None))
    spent = np.diff([0.0, *view.busy])
    spent = spent[: max(1, len(spent) - engine.num_trials)]  # after them others are begun
    windows = [float(spent[i : i + WINDOW].mean() * 1e3) for i in range(0, len(spent), WINDOW)]
    memory = Memory.now()
    lost = engine.idle / (case.num_parallel * engine.now)
    start = time.perf_counter()
    again = SimulatedEngine(case.num_parallel, case.seconds)
    study = open_study(name, url, create=True)
    resumed = coordinator(study, folder, cfg, again, BusyView(again))
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

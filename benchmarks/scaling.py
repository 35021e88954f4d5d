"""`python -m benchmarks.scaling`: what the coordinator costs when trials are many and many are under way.

Everything is the real thing, storage, sampler, dashboard notes and files, but for the engine: its measurements and trainings
give known results, and take their time on a clock that nobody waits for. What the coordinator takes passes on that clock
too, so that a lane which is free while the coordinator is busy stands idle as it would. Each case has a process of its own.
"""

from __future__ import annotations

import argparse
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
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import hydra
import numpy as np
import optuna
import psutil
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from models.complexity import cost
from search.accuracy.base import Accuracy
from search.commands.cli import build, conf_dir
from search.commands.run import sampler_of, save_samples
from search.commands.targets import FIRST_DEVICE
from search.engine.base import Device, Engine, Job
from search.engine.work import TRAINING, Measure, Train, Work
from search.latency.base import Calibration, Latency
from search.latency.block_model import BlockModel, features
from search.results.board import Board
from search.results.view import LogView
from search.space.space import Space
from search.study.coordinator import Coordinator, SearchProgress
from search.study.evaluate import Budgeted, Objective
from search.study.storage import Patience, Unheld, open_study
from search.study.trial import Finished

MEASURE_SECONDS = 0.05
IMG_SIZE = 32
WINDOW = 100  # trials to average over
LIMIT_MS = 10.0


@dataclass(frozen=True)
class Case:
    """num_parallel: trainings at once. seconds: of one, on average. storage: a URL, or sqlite for a file of its own."""

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
    """resident: all of a process that is in memory. own: without the pages of files, such as libraries, which processes
    share and the system can drop; the same where psutil does not tell.
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
    """ms_per_trial: of the coordinator, by WINDOW trials. lost: share of the training lanes' time in which they had no work
    while it was busy.

    busy: share of the time in which it was. resume_seconds: from opening the finished study to the next trial. memory: of
    the coordinator's process before the first trial, and after the last.
    """

    case: Case
    ms_per_trial: list[float]
    lost: float
    busy: float
    resume_seconds: float
    memory_before: Memory
    memory: Memory


@dataclass(eq=False)
class SimulatedEngine(Engine):
    """As many training lanes as asked for and a measuring one, on a clock of their own."""

    parallel: int
    train_seconds: float
    now: float = 0.0
    idle: float = 0.0
    busy: float = 0.0
    _seen: float = field(default_factory=time.perf_counter)
    _free: dict[str, list[float]] = field(default_factory=dict)  # of each lane: how busy the coordinator had been till then
    _queue: list[Job] = field(default_factory=list)
    _events: list[tuple[float, int, Job]] = field(default_factory=list)
    _ids: Any = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        super().__init__(
            {FIRST_DEVICE: Device(lambda: None)},  # type: ignore[arg-type, return-value]  # nothing is started
            num_parallel=self.parallel,
            num_ahead=None,
            measure_timeout_seconds=1.0,
            train_timeout_seconds=1.0,
            max_retries=0,
            measure_beside_training=True,
        )
        self._free = {FIRST_DEVICE: [0.0], TRAINING: [0.0] * self.parallel}

    def submit(self, work: Work) -> Job:
        self._let_time_pass()
        job = Job(work)
        self._queue.append(job)
        self._start_queued()
        return job

    def wait(self, seconds: float) -> list[Job]:
        self._let_time_pass()
        until = self.now + seconds
        self.now = max(self.now, min(until, self._events[0][0]) if self._events else self.now)
        ended = []
        while self._events and self._events[0][0] <= self.now:
            end, _, job = heapq.heappop(self._events)
            self._free[job.work.place].append(self.busy - (self.now - end))  # since then nothing else has passed
            job.ended = True
            ended.append(job)
        self._start_queued()
        self._seen = time.perf_counter()
        return ended

    def start_clock(self) -> None:
        self._seen = time.perf_counter()

    def clock(self) -> float:
        return self.now + time.perf_counter() - self._seen

    def _let_time_pass(self) -> None:
        """What the coordinator has taken since it was here last."""
        now = time.perf_counter()
        self.now += now - self._seen
        self.busy += now - self._seen
        self._seen = now

    def _start_queued(self) -> None:
        for job in list(self._queue):
            lanes = self._free[job.work.place]
            if not lanes:
                continue
            busy = lanes.pop(0)
            if isinstance(job.work, Train):
                self.idle += self.busy - busy
            self._queue.remove(job)
            job.value = answer(job.work)
            takes = MEASURE_SECONDS if job.work.place != TRAINING else self.train_seconds * drawn(job.work, 0.5, 1.5)
            heapq.heappush(self._events, (self.now + takes, next(self._ids), job))


def drawn(work: Work, low: float, high: float) -> float:
    """A number that depends on the network alone."""
    assert isinstance(work, Train | Measure)
    return low + (high - low) * (zlib.crc32(work.architecture.key.encode()) % 997) / 997


def answer(work: Work) -> Latency | Accuracy:
    """Smooth in the network, with an error that no model foresees."""
    if isinstance(work, Measure):
        num_blocks = sum(stage.depth for stage in work.architecture.stages)
        ms = 0.2 + float(features(work.architecture, IMG_SIZE)[6]) / 4e5 + 0.2 * num_blocks
        ms *= drawn(work, 0.97, 1.03)
        return Latency(ms, ms * 0.98, ms * 1.02, 40, 10, True, 1.0)
    assert isinstance(work, Train)
    size = work.architecture.embed_dim * sum(stage.depth for stage in work.architecture.stages)
    return Accuracy(min(0.99, 1 - 1 / math.sqrt(size) + drawn(work, -0.02, 0.02)), 3000, 0, 1.0)


class Quiet(LogView):
    """Counts what the coordinator took."""

    def __init__(self, engine: SimulatedEngine) -> None:
        super().__init__(logging.DEBUG)
        self.engine = engine
        self.busy: list[float] = []

    def trial_finished(self, trial: Finished, progress: SearchProgress) -> None:
        super().trial_finished(trial, progress)
        self.busy.append(self.engine.busy)


def configuration(case: Case) -> DictConfig:
    with hydra.initialize_config_dir(str(conf_dir()), version_base=None):
        return hydra.compose("config", ["+search=cpu_latency", f"sampler={case.sampler}"])


def coordinator(study: optuna.Study, folder: Path, cfg: DictConfig, engine: SimulatedEngine, view: LogView) -> Coordinator:
    space: Space = build(cfg.space)
    calibration = Calibration(space.anchor(), 1.0, 0.99, 1.01, 100)
    study.set_user_attr("device", {"device": "simulated", "input_size": f"1x{IMG_SIZE}x{IMG_SIZE}"})
    board = Board(study, folder)
    return Coordinator(
        study=study,
        space=space,
        engine=engine,
        objective=Objective({FIRST_DEVICE: Budgeted(calibration)}, 0),
        models={FIRST_DEVICE: BlockModel(IMG_SIZE)},
        make_sampler=sampler_of(cfg),
        seed=0,
        cost=partial(cost, in_chans=1, num_classes=100, img_size=IMG_SIZE),
        save_samples=partial(save_samples, folder / "latency", {FIRST_DEVICE: {}}),
        annotate=board.annotate,
        publish=lambda trials: board.publish_front(trials, None),
        view=view,
        reference_ms=[LIMIT_MS],
        max_consecutive_failures=5,
        patiently=Patience(0.0, Unheld()),
        clock=engine.clock,
    )


def run(case: Case, folder: Path) -> Result:
    """Fill a study, then open it again as another process would."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = f"sqlite:///{folder / 'study.db'}" if case.storage == "sqlite" else case.storage
    name = f"scaling-{uuid4()}"
    engine = SimulatedEngine(case.num_parallel, case.seconds)
    view, cfg = Quiet(engine), configuration(case)
    started = coordinator(open_study(name, url, create=True), folder, cfg, engine, view)
    before = Memory.now()
    engine.start_clock()
    assert started.run(case.num_trials, None)
    spent = np.diff([0.0, *view.busy])
    spent = spent[: max(1, len(spent) - engine.num_trials)]  # after them others are begun
    windows = [float(spent[i : i + WINDOW].mean() * 1e3) for i in range(0, len(spent), WINDOW)]
    memory = Memory.now()
    lost = engine.idle / (case.num_parallel * engine.now)
    start = time.perf_counter()
    again = SimulatedEngine(case.num_parallel, case.seconds)
    study = open_study(name, url, create=True)
    resumed = coordinator(study, folder, cfg, again, Quiet(again))
    resumed._recover()
    resumed._ask()
    seconds = time.perf_counter() - start
    if case.storage != "sqlite":
        optuna.delete_study(study_name=name, storage=study._storage)
    return Result(case, windows, lost, engine.busy / engine.now, seconds, before, memory)


def cases(options: argparse.Namespace) -> list[Case]:
    """Many trials with the default sampler, fewer with the others, other storages and less at once."""
    most, widest = max(options.trials), max(options.parallel)
    some = min(options.trials)
    listed = [Case(most if parallel == widest else some, parallel) for parallel in options.parallel]
    listed += [Case(some, widest, sampler) for sampler in ("random", "tpe", "nsga2")]
    return listed + [Case(some, widest, storage=url) for url in options.storage]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs=2, default=[1000, 10000], help="the more with most at once")
    parser.add_argument("--parallel", type=int, nargs="+", default=[1, 8, 64], help="trainings at once")
    parser.add_argument("--storage", nargs="*", default=[], help="further storage URLs, such as postgresql://...")
    parser.add_argument("--plot", type=Path, default=Path("outputs/scaling.png"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(asdict(run(Case(**json.loads(options.one)), Path(folder)))))
        return
    console = Console(width=180)
    results = []
    for case in cases(options):
        console.print(f"{case.name}: {case.num_trials} trials")
        command = [sys.executable, "-m", "benchmarks.scaling", "--one", json.dumps(asdict(case))]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
        memories = {name: Memory(**found[name]) for name in ("memory_before", "memory")}
        results.append(Result(**{**found, "case": case, **memories}))
    show(console, results)
    plot(results, options.plot)
    console.print(f"saved {options.plot}")


def show(console: Console, results: list[Result]) -> None:
    table = Table(title="Stand-ins of 15 to 45 s; the coordinator on this machine", title_justify="left")
    headers = ("at once", "trials", "sampler", "storage", "ms a trial", "at the end", "lanes' time lost", "coordinator busy")
    for header in (*headers, "resume", "memory at first", "at last"):
        table.add_column(header, justify="right")
    for one in results:
        case = one.case
        table.add_row(
            str(case.num_parallel),
            f"{case.num_trials:,}",
            case.sampler,
            case.storage.partition(":")[0],
            f"{np.mean(one.ms_per_trial):.0f}",
            f"{one.ms_per_trial[-1]:.0f}",
            f"{one.lost:.2%}",
            f"{one.busy:.1%}",
            f"{one.resume_seconds:.1f} s",
            str(one.memory_before),
            str(one.memory),
        )
    console.print(table)


def plot(results: list[Result], path: Path) -> None:
    """Time of the coordinator for a trial, over the trials so far."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for one in results:
        numbers = [WINDOW * (index + 1) for index in range(len(one.ms_per_trial))]
        label = f"{one.case.sampler}, {one.case.storage.partition(':')[0]}, {one.case.num_parallel} at once"
        axes.plot(numbers, one.ms_per_trial, label=label)
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

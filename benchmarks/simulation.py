"""Searches with a simulated engine: storage, sampler, dashboard notes and files are real, results of networks are given.

Their time passes on a clock that nobody waits for. What the coordinator takes passes on that clock too, so a worker that is
free while the coordinator is busy stands idle as it would.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import hydra
import optuna
from omegaconf import DictConfig

from models.architecture import Architecture
from models.complexity import cost
from search.accuracy.base import Accuracy, AccuracyEvaluator, Progress
from search.commands.cli import build, conf_dir
from search.commands.run import sampler_of, save_samples
from search.engine.base import Fingerprint
from search.latency.base import Calibration, Latency
from search.latency.block_model import BlockModel
from search.latency.estimate import Estimate
from search.results.dashboard import DashboardPublisher
from search.results.view import LogView
from search.space import Space
from search.study.coordinator import Coordinator, SearchProgress, View
from search.study.evaluate import Rules
from search.study.locks import NullLock, RetryPolicy
from search.study.targets import FIRST, Target, save_targets
from search.study.trial import TrialRecord
from search.study.writer import StudyWriter

SETTLING_STEPS = 20  # of the event loop, in which everybody comes to wait: a trial takes a handful from event to event


@dataclass
class SimulatedEngine:
    """Training workers and a measuring one, on a clock of their own, which is driven by an asyncio task.

    Attributes:
        num_parallel: trainings at a time.
        latency_of: the result of a measurement, which takes its `seconds` and `prepare_seconds`.
        accuracy_of: the result of a training, which takes its `seconds`.
        now: the time, as of when the coordinator last gave way.
        idle: seconds in which training workers had no work while the coordinator was busy, all together.
        busy: seconds of the coordinator.
    """

    num_parallel: int
    latency_of: Callable[[Architecture], Latency]
    accuracy_of: Callable[[Architecture], Accuracy]
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
        latency = self.latency_of(architecture)
        async with self._measuring:
            await self._take(latency.prepare_seconds + latency.seconds)
        return latency

    async def train(
        self, architecture: Architecture, seed: int, progress: Progress, num_epochs: int | None = None
    ) -> Accuracy:
        accuracy = self.accuracy_of(architecture)
        async with self._training:
            self._let_time_pass()
            self.idle += self.busy - self._free.pop(0)
            end = await self._take(accuracy.seconds)
            self._free.append(self.busy - (self.now - end))  # since then nothing else has passed
        return accuracy

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


class RecordingView(LogView):
    """Calls a function with each finished trial."""

    def __init__(self, record: Callable[[TrialRecord], None]) -> None:
        super().__init__(logging.DEBUG)
        self.record = record

    def trial_finished(self, trial: TrialRecord, progress: SearchProgress) -> None:
        super().trial_finished(trial, progress)
        self.record(trial)


def configuration(*overrides: str) -> DictConfig:
    """The default search's configuration, with overrides."""
    with hydra.initialize_config_dir(str(conf_dir()), version_base=None):
        return hydra.compose("config", ["+search=cpu_latency", *overrides])


def coordinator(
    study: optuna.Study,
    folder: Path,
    cfg: DictConfig,
    engine: SimulatedEngine,
    view: View,
    rules: Rules,
    reference_ms: float,
    num_classes: int,
) -> Coordinator:
    """The coordinator of a search with a simulated engine, for images as large as the configuration's.

    Args:
        reference_ms: the latency up to which the hypervolume counts.
    """
    space: Space = build(cfg.space)
    img_size, in_chans = cfg.data.img_size, cfg.data.in_chans
    calibration = Calibration(space.anchor(), Estimate(1.0, 0.005, 100.0), 100)
    device = {
        "device": "simulated", "backend": "none", "num_threads": 1, "batch_size": 1,
        "input_size": f"{in_chans}x{img_size}x{img_size}", "num_classes": num_classes,
    }  # fmt: skip
    targets = {FIRST: Target(calibration, device=device, reference_ms=reference_ms)}
    save_targets(study, targets)
    dashboard = DashboardPublisher(study, folder)
    return Coordinator(
        writer=StudyWriter(
            study, space, targets, sampler_of(cfg), cfg.study.seed, dashboard.annotate, RetryPolicy(0.0, NullLock())
        ),
        engine=engine,
        targets=targets,
        rules=rules,
        models={FIRST: BlockModel(img_size)},
        cost=partial(cost, in_chans=in_chans, num_classes=num_classes, img_size=img_size),
        save_samples=partial(save_samples, folder / "latency", targets),
        publish=dashboard.publish_front,
        view=view,
        max_consecutive_failures=5,
        clock=engine.clock,
    )

"""A coordinator over an engine that knows the answers at once: measuring and training are the slow parts of a search."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from models.architecture import Architecture
from search.accuracy.base import Accuracy, AccuracyEvaluator, Progress
from search.engine.base import Fingerprint
from search.latency.base import Calibration, Latency
from search.latency.block_model import BlockModel
from search.latency.estimate import Estimate
from search.latency.rounds import Round
from search.results.dashboard import DashboardPublisher
from search.results.view import LogView
from search.space import Space
from search.space.space import Parameters
from search.study.coordinator import Coordinator
from search.study.evaluate import Rules
from search.study.limits import Limits, save_limits
from search.study.locks import NullLock, RetryPolicy
from search.study.storage import open_study
from search.study.targets import FIRST, Role, Target, objectives, save_targets
from search.study.trial import TrialRecord, TrialResult, finished_trials, is_skipped
from search.study.writer import StudyWriter

SPACE = Space(
    embed_dim=[8, 16],
    stages=[{"depth": [1, 2], "window_size": [0, 1, 2], "alpha": [0.0, 0.5, 1.0], "num_heads": 2}] * 2
    + [{"depth": [1, 2], "window_size": 0, "alpha": 0.0, "num_heads": 1}] * 2,
    patch_size=2,
    downsample="conv",
)
ANCHOR = SPACE.anchor()
CALIBRATION = Calibration(ANCHOR, Estimate(1.0, 0.005, 100.0), 50)
DEVICE = {
    "device": "Known CPU", "cores": 2, "backend": "torch eager", "num_threads": 1, "batch_size": 1,
    "input_size": "1x32x32", "num_classes": 100,
}  # fmt: skip
Fault = Callable[[str, Architecture], None]


class KnownEngine:
    """Answers from the architecture; counts what it was asked.

    Args:
        fault: may raise instead, given "measure" or "train" and the architecture.
        targets: their latencies are those of the first, times 1, 2 and so on, smaller networks relatively slower.
        num_trials: how many trials are worth running at a time.
        metric: what counts as accuracy.
    """

    def __init__(
        self,
        fault: Fault = lambda part, architecture: None,
        targets: Sequence[str] = (FIRST,),
        num_trials: int = 1,
        metric: str = "top1",
    ) -> None:
        self.metric = metric
        self.fault = fault
        self.targets = list(targets)
        self.num_trials = num_trials
        self.measured: list[str] = []
        self.trained: list[str] = []
        self.stopped: list[tuple[str, int]] = []  # networks at rungs

    async def answer(self) -> None:
        """Take as long as it takes to answer."""

    async def fingerprint(self, role: str) -> Fingerprint:
        return DEVICE

    def expect(self, role: str, fingerprint: Fingerprint) -> None:
        pass

    async def calibrate(self, target: str, anchor: Architecture, repeated: Sequence[Architecture] = ()) -> Calibration:
        return replace(CALIBRATION, anchor=anchor)

    async def measure(self, target: str, architecture: Architecture, calibration: Calibration) -> Latency:
        await self.answer()
        return self.latency(architecture, 1 + self.targets.index(target))

    async def train(
        self, architecture: Architecture, seed: int, progress: Progress, num_epochs: int | None = None
    ) -> Accuracy:
        await self.answer()
        progress(0.5)
        if num_epochs is None:
            return self.accuracy(architecture, seed)
        self.fault("train", architecture)
        self.stopped.append((architecture.key, num_epochs))
        return Accuracy(num_epochs / 10 * self.value(architecture), 1000, seed, 0.1)

    async def train_shared_weights(self, seed: int, progress: Progress) -> bytes:
        return b""

    def use_evaluator(self, make_evaluator: Callable[[], AccuracyEvaluator]) -> None:
        pass

    def close(self) -> None:
        pass

    def latency(self, architecture: Architecture, factor: int = 1) -> Latency:
        self.fault("measure", architecture)
        self.measured.append(architecture.key)
        ms = architecture.embed_dim / 8 + sum(s.depth * (1 + s.window_size) for s in architecture.stages) / 10
        ms = factor * (ms + (factor - 1) * sum(s.depth for s in architecture.stages) / 5)
        return Latency(
            Estimate(ms, 0.005, 100.0),
            20,
            6,
            True,
            0.1,
            peak_bytes=1_000_000 * (architecture.embed_dim + sum(s.depth for s in architecture.stages)),
            file_bytes=10_000 * architecture.embed_dim,
            rounds=(Round((ms,) * 20, (1.0,) * 21),),
        )

    def accuracy(self, architecture: Architecture, seed: int) -> Accuracy:
        self.fault("train", architecture)
        self.trained.append(architecture.key)
        value = self.value(architecture)
        if self.metric != "top1":
            return Accuracy.of_metric(self.metric, value, 0.0123, np.sin(np.arange(1000)), seed, 0.1)
        return Accuracy(value, 1000, seed, 0.1)

    @staticmethod
    def value(architecture: Architecture) -> float:
        return 1 - 1 / (architecture.embed_dim + sum(s.depth for s in architecture.stages))


class ShuffledEngine(KnownEngine):
    """Several trials at a time, whose measurements and trainings end in a random order."""

    def __init__(self, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**{"num_trials": 8, **kwargs})
        self.rng = random.Random(seed)
        self.waiting: list[asyncio.Future[None]] = []
        self.most = 0

    async def answer(self) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append(turn)
        self.most = max(self.most, len(self.waiting))
        asyncio.get_running_loop().call_soon(self.release)
        await turn

    def release(self) -> None:
        """Let somebody go on, once nobody else comes to wait."""
        waiting = [turn for turn in self.waiting if not turn.done()]
        if waiting:
            turn = self.rng.choice(waiting)
            self.waiting.remove(turn)
            turn.set_result(None)


def known_targets(engine: KnownEngine, limit_ms: float | None = None, **changed: Target) -> dict[str, Target]:
    """The targets of an engine as a search sees them; the limit is the first one's."""
    target = Target(CALIBRATION, device=DEVICE, reference_ms=10.0)
    targets = {name: replace(target, reference_ms=10.0 * (1 + 2 * index)) for index, name in enumerate(engine.targets)}
    targets[FIRST] = replace(targets[FIRST], limit_ms=limit_ms)
    return {**targets, **changed}


def constraint(limit_ms: float) -> Target:
    """A target whose latency only has to keep a limit."""
    return replace(known_targets(KnownEngine())[FIRST], role=Role.CONSTRAINT, limit_ms=limit_ms)


def interrupting(*calls: int) -> Fault:
    """A fault: Ctrl-C at these calls, counted from 1."""
    count = 0

    def fault(part: str, architecture: Architecture) -> None:
        nonlocal count
        count += 1
        if count in calls:
            raise KeyboardInterrupt

    return fault


def sampler(kind: Any = optuna.samplers.RandomSampler, **kwargs: Any) -> Callable[[int], optuna.samplers.BaseSampler]:
    return lambda seed: kind(seed=seed, **kwargs)


def coordinator(
    study: optuna.Study, engine: KnownEngine, targets: Mapping[str, Target] | None = None, **changed: Any
) -> Coordinator:
    """A coordinator whose writer and own arguments may be changed by name."""
    chosen = targets or known_targets(engine)
    save_targets(study, chosen)
    limits = changed.pop("limits", {})
    save_limits(study, limits)
    of_writer: dict[str, Any] = {
        "study": study,
        "space": SPACE,
        "targets": chosen,
        "make_sampler": sampler(),
        "seed": 0,
        "annotate": lambda trial, record: None,
        "retry": RetryPolicy(0.0, NullLock()),
        "limits": limits,
    }
    arguments: dict[str, Any] = {
        "engine": engine,
        "targets": chosen,
        "rules": Rules(seed=0, limits=limits),
        "models": {name: BlockModel(32) for name in chosen},
        "cost": lambda architecture: (1000, 2000),
        "save_samples": lambda number, architecture, result: None,
        "publish": lambda trials: None,
        "view": LogView(),
        "max_consecutive_failures": 3,
    }
    writer = StudyWriter(**{**of_writer, **{key: value for key, value in changed.items() if key in of_writer}})
    rest = {key: value for key, value in changed.items() if key not in of_writer}
    return Coordinator(writer=writer, **{**arguments, **rest})


def fill(started: Coordinator, n_trials: int, timeout_minutes: float | None = None) -> bool:
    """Run a coordinator to its end."""
    return asyncio.run(started.run(n_trials, timeout_minutes))


def run(
    storage: str,
    n_trials: int,
    engine: KnownEngine | None = None,
    limit_ms: float | None = None,
    targets: Mapping[str, Target] | None = None,
    **changed: Any,
) -> list[TrialRecord]:
    """Fill a study, and read what it then holds."""
    engine = engine or KnownEngine()
    chosen = targets or known_targets(engine, limit_ms)
    study = open_study("test", storage, create=True, num_latencies=len(objectives(chosen)))
    fill(coordinator(study, engine, chosen, **changed), n_trials)
    return finished_trials(study)


def finished(
    number: int,
    accuracy: float,
    latency_ms: float,
    architecture: Architecture | None = None,
    origin: str = "sampled",
    parameters: Parameters | None = None,
    **other_ms: float,
) -> TrialRecord:
    """A trial by itself: 1,000 validation images, a standard error of 1 % of each latency."""
    latencies = {
        name: Latency(Estimate(ms, 0.01, 100.0), 20, 6, True, 0.1) for name, ms in {FIRST: latency_ms, **other_ms}.items()
    }
    result = TrialResult(latencies, Accuracy(accuracy, 1000, 0, 1.0), True)
    network = architecture or SPACE.sample([number])
    return TrialRecord(number, network, result, 1000, 2000, origin, parameters or {})


def count_skipped(study: optuna.Study) -> int:
    """The number of trials that the block model or a limit ended before anything was measured."""
    return sum(map(is_skipped, study.get_trials(deepcopy=False)))


def studied(
    storage: str,
    num_trials: int,
    limit_ms: float | None = None,
    rules: Rules | None = None,
    folder: Path | None = None,
    targets: Mapping[str, Target] | None = None,
    limits: Limits | None = None,
    metric: str = "top1",
) -> optuna.Study:
    """A finished study with everything that a search leaves in one.

    Args:
        folder: the study's, for what the dashboard shows.
        targets: by default one, with the limit if there is any.
        limits: of parameters and multiply-accumulates, where every network has 1,000 and 2,000 of them.
        metric: what counts as accuracy.
    """
    engine = KnownEngine(targets=tuple(targets or (FIRST,)), metric=metric)
    chosen = targets or known_targets(engine, limit_ms)
    study = open_study("shown", storage, create=True, num_latencies=len(objectives(chosen)))
    save_targets(study, chosen)
    save_limits(study, limits or {})
    settings = {
        "data": {"name": "glyphs", "train_size": 100, "val_size": 50, "img_size": 32},
        "train": {"max_epochs": 1},
        "accuracy": {"_target_": "search.accuracy.scratch.ScratchEvaluator", "metric": metric},
        "latency": {"budget_ms": limit_ms},
        "study": {"seed": 0},
        "proxy": {"width_multiplier": 1.0},
    }
    study.set_user_attr("settings", settings)
    study.set_user_attr("versions", {"torch": "1"})
    changed: dict[str, Any] = {"limits": limits or {}} | ({} if rules is None else {"rules": rules})
    if folder is not None:
        dashboard = DashboardPublisher(study, folder)
        dashboard.write_note(storage, SPACE)
        changed |= {"annotate": dashboard.annotate, "publish": dashboard.publish_front}
    fill(coordinator(study, engine, chosen, **changed), num_trials)
    return study

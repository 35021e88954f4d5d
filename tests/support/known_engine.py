"""A coordinator over an engine that knows the answers at once: measuring and training are the slow parts of a search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import optuna

from models.architecture import Architecture
from search.accuracy.base import Accuracy
from search.engine.base import HERE, Device, Engine
from search.engine.work import TRAINING, Calibrate, Measure, Train, Work
from search.latency.base import Calibration, Latency, Round
from search.latency.block_model import BlockModel
from search.results.board import Board
from search.results.view import LogView
from search.space.space import Parameters, Space
from search.study.coordinator import Coordinator
from search.study.evaluate import Budgeted, Objective, Outcome
from search.study.storage import Patience, Unheld, open_study
from search.study.trial import Finished, finished_trials

SPACE = Space(
    embed_dim=[8, 16],
    stages=[{"depth": [1, 2], "window_size": [0, 1, 2], "alpha": [0.0, 0.5, 1.0], "num_heads": 2}] * 2
    + [{"depth": [1, 2], "window_size": 0, "alpha": 0.0, "num_heads": 1}] * 2,
    patch_size=2,
    downsample="conv",
)


class KnownLane:
    """Does its work at once, or keeps it until it is told to: `finish` then gives the results in any order."""

    def __init__(self, engine: KnownEngine, place: str) -> None:
        self.engine = engine
        self.place = place
        self.sites = (HERE,)
        self.make: Callable[[], Any] = lambda: engine
        self.share = 0.5

    def start(self, work: Work) -> Future[Any]:
        future: Future[Any] = Future()
        self.engine.pending.append((work, future))
        if not self.engine.holds_back:
            self.engine.finish(0)
        return future

    def restart(self) -> None:
        pass

    def seek(self) -> str | None:
        return None

    def close(self) -> None:
        pass


class KnownEngine(Engine):
    """Answers from the architecture; counts what it was asked. `fault` may raise instead, given the architecture.

    devices: their latencies are those of the first, times 1, 2 and so on, smaller networks relatively slower. holds_back:
    work waits for `finish`, as many trainings at once as num_parallel says. beside: whether it measures beside trainings.
    """

    def __init__(
        self,
        fault: Callable[[str, Architecture], None] = lambda part, architecture: None,
        devices: Sequence[str] = ("first",),
        num_parallel: int = 1,
        holds_back: bool = False,
        beside: bool = True,
    ) -> None:
        super().__init__(
            {name: Device(lambda: self) for name in devices},
            num_parallel=num_parallel,
            num_ahead=None,
            measure_timeout_seconds=60.0,
            train_timeout_seconds=60.0,
            max_retries=0,
            measure_beside_training=beside,
        )
        self.fault = fault
        self.holds_back = holds_back
        self.measured: list[str] = []
        self.trained: list[str] = []
        self.pending: list[tuple[Work, Future[Any]]] = []
        self.open([KnownLane(self, name) for name in (*devices, *[TRAINING] * num_parallel)])

    def finish(self, index: int) -> None:
        work, future = self.pending.pop(index)
        try:
            future.set_result(self.answer(work))
        except BaseException as error:
            future.set_exception(error)

    def answer(self, work: Work) -> Any:
        if isinstance(work, Train):
            return self.accuracy(work.architecture, work.seed)
        if isinstance(work, Measure):
            return self.latency(work.architecture, 1 + list(self.devices).index(work.place))
        return Calibration(work.anchor, 1.0, 0.99, 1.01, 50) if isinstance(work, Calibrate) else {"device": "known"}

    def latency(self, architecture: Architecture, factor: int = 1) -> Latency:
        self.fault("measure", architecture)
        self.measured.append(architecture.key)
        ms = architecture.embed_dim / 8 + sum(s.depth * (1 + s.window_size) for s in architecture.stages) / 10
        ms = factor * (ms + (factor - 1) * sum(s.depth for s in architecture.stages) / 5)
        return Latency(ms, ms * 0.99, ms * 1.01, 20, 6, True, 0.1, rounds=(Round((ms,) * 20, (1.0,) * 21),))

    def accuracy(self, architecture: Architecture, seed: int) -> Accuracy:
        self.fault("train", architecture)
        self.trained.append(architecture.key)
        return Accuracy(1 - 1 / (architecture.embed_dim + sum(s.depth for s in architecture.stages)), 1000, seed, 0.1)

    def known_devices(self, budget_ms: float | None = None) -> dict[str, Budgeted]:
        """As a search sees them; the budget is the first one's."""
        calibration = Calibration(SPACE.anchor(), 1.0, 0.99, 1.01, 50)
        budgets = [budget_ms, *[None] * (len(self.devices) - 1)]
        return {name: Budgeted(calibration, budget) for name, budget in zip(self.devices, budgets, strict=True)}


def interrupting(*calls: int) -> Callable[[str, Architecture], None]:
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


def coordinator(study: optuna.Study, engine: KnownEngine, budget_ms: float | None = None, **kwargs: Any) -> Coordinator:
    arguments: dict[str, Any] = {
        "space": SPACE,
        "engine": engine,
        "objective": Objective(engine.known_devices(budget_ms), seed=0),
        "models": {name: BlockModel(32) for name in engine.devices},
        "make_sampler": sampler(),
        "seed": 0,
        "cost": lambda architecture: (1000, 2000),
        "save_samples": lambda number, outcome: None,
        "annotate": lambda trial, result: None,
        "publish": lambda trials: None,
        "view": LogView(),
        "reference_ms": 10.0,
        "max_consecutive_failures": 3,
        "patiently": Patience(0.0, Unheld()),
    }
    return Coordinator(study=study, **{**arguments, **kwargs})


def run(storage: str, n_trials: int, engine: KnownEngine | None = None, **kwargs: Any) -> list[Finished]:
    num_latencies = 1 if engine is None else len(engine.devices)
    study = open_study("test", storage, create=True, num_latencies=num_latencies)
    coordinator(study, engine or KnownEngine(), **kwargs).run(n_trials, None)
    return finished_trials(study)


def finished(
    number: int,
    accuracy: float,
    latency_ms: float,
    architecture: Architecture | None = None,
    origin: str = "sampled",
    parameters: Parameters | None = None,
) -> Finished:
    """A trial by itself: 1,000 validation images, an interval of 2 % around the latency."""
    latency = Latency(latency_ms, latency_ms / 1.02, latency_ms * 1.02, 20, 6, True, 0.1)
    outcome = Outcome(latency, Accuracy(accuracy, 1000, 0, 1.0), True)
    network = architecture or SPACE.sample([number])
    return Finished(number, network, outcome, 1000, 2000, origin, None, parameters or {})


def studied(
    storage: str,
    num_trials: int,
    budget_ms: float | None = None,
    objective: Objective | None = None,
    folder: Path | None = None,
) -> optuna.Study:
    """A finished study with everything that a search leaves in one. folder: the study's, for what the dashboard shows."""
    study = open_study("shown", storage, create=True)
    device = {"device": "Known CPU", "cores": 2, "backend": "torch eager", "num_threads": 1, "batch_size": 1}
    settings = {
        "data": {"name": "glyphs", "train_size": 100, "val_size": 50, "img_size": 32},
        "train": {"max_epochs": 1},
        "accuracy": {"_target_": "search.accuracy.scratch.ScratchEvaluator"},
        "latency": {"budget_ms": budget_ms},
        "study": {"seed": 0},
        "proxy": {"width_multiplier": 1.0},
    }
    study.set_user_attr("device", {**device, "input_size": "1x32x32", "num_classes": 100})
    study.set_user_attr("settings", settings)
    study.set_user_attr("reference_latency_ms", 10.0)
    study.set_user_attr("versions", {"torch": "1"})
    kwargs: dict[str, Any] = {} if objective is None else {"objective": objective}
    if folder is not None:
        board = Board(study, folder)
        board.write_note(storage, SPACE, budget_ms)
        kwargs |= {"annotate": board.annotate, "publish": lambda trials: board.publish_front(trials, budget_ms)}
    coordinator(study, KnownEngine(), budget_ms, **kwargs).run(num_trials, None)
    return study

"""The local engine keeps the contract: a process of its own for every target and every training that may run at a time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

from search import SearchStopped
from search.accuracy.base import Progress
from search.engine.base import HERE, TRAINING, TargetSource
from search.engine.hosts import HostLock
from search.engine.local import LocalEngine, check_cores
from search.engine.tasks import Resource
from search.engine.workers import WorkerEngine
from search.latency.machine import allowed_cores
from tests.contracts.engine import *  # noqa: F403
from tests.contracts.engine import measure, runner, together, train
from tests.contracts.odd_workers import OddEvaluator, OddTarget, stretches, wide

__all__ = ["runner"]  # a fixture

SETTINGS: dict[str, Any] = {
    "num_ahead": None,
    "measure_timeout_seconds": 60.0,
    "train_timeout_seconds": 60.0,
    "max_retries": 1,
    "measure_beside_training": False,
}


def local(folder: Path, num_parallel: int, second_hosts: tuple[str, ...] = (HERE,), **changed: Any) -> LocalEngine:
    targets = {
        "first": TargetSource(partial(OddTarget, str(folder))),
        "second": TargetSource(partial(OddTarget, str(folder), "second"), second_hosts),
    }
    settings = {**SETTINGS, "num_threads": 1, **changed}
    return LocalEngine(targets, partial(OddEvaluator, str(folder)), num_parallel=num_parallel, **settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("times")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[WorkerEngine]:
    engine = local(folder, 1)
    yield engine
    engine.close()


needs_two_cores = pytest.mark.skipif(len(allowed_cores()) < 2, reason="one core: it takes one training at a time")


@pytest.fixture(scope="module")
def wide_engine(folder: Path) -> Iterator[WorkerEngine]:
    """Two trainings at a time, and a second target elsewhere."""
    engine = local(folder, 2, ("elsewhere", HERE))
    yield engine
    engine.close()


def test_threads_of_this_process_do_not_reach_it(engine: WorkerEngine, runner: asyncio.Runner) -> None:
    before = runner.run(engine.fingerprint("first"))
    torch.set_num_threads(1 if torch.get_num_threads() > 1 else 2)
    assert runner.run(engine.fingerprint("first")) == before


def test_what_a_process_logs_is_logged_here(
    engine: WorkerEngine,
    runner: asyncio.Runner,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, logger="search.odd"):
        runner.run(train(engine, 8))
        deadline = time.monotonic() + 60
        while "training a network of width 8" not in caplog.messages:  # it comes by another way than the result
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_progress_of_a_training_is_reported(engine: WorkerEngine, runner: asyncio.Runner) -> None:
    shares: list[float] = []
    runner.run(engine.train(wide(40), 0, shares.append))  # which takes longer than its report on its way
    assert shares == [0.25]


def test_one_training_at_a_time_is_one_trial_at_a_time(engine: WorkerEngine) -> None:
    assert engine.num_trials == 1


@needs_two_cores
def test_trainings_run_together_and_never_beside_a_measurement(
    wide_engine: WorkerEngine,
    runner: asyncio.Runner,
    folder: Path,
) -> None:
    runner.run(together(*(train(wide_engine, 40, seed) for seed in range(4))))  # both processes are up
    before = set(stretches(folder))
    measurements = [measure(wide_engine, 40) for _ in range(2)]
    runner.run(together(*(train(wide_engine, 40, seed) for seed in range(4)), *measurements))
    new = [stretch for stretch in stretches(folder) if stretch not in before]
    pairs = [(first, other) for first, other in combinations(new, 2) if first.overlaps(other)]
    assert len(new) == 6
    assert pairs
    assert {stretch.role for pair in pairs for stretch in pair} == {TRAINING}


@needs_two_cores
def test_target_elsewhere_is_measured_meanwhile(
    wide_engine: WorkerEngine,
    runner: asyncio.Runner,
    folder: Path,
) -> None:
    runner.run(together(*(train(wide_engine, 8, seed) for seed in range(2)), measure(wide_engine, 8, "second")))
    before = set(stretches(folder))
    runner.run(together(train(wide_engine, 40), measure(wide_engine, 40, "second")))
    first, other = (stretch for stretch in stretches(folder) if stretch not in before)
    assert first.overlaps(other)


@needs_two_cores
def test_trials_are_measured_ahead_of_several_trainings(wide_engine: WorkerEngine) -> None:
    assert wide_engine.num_trials == 4


@pytest.mark.parametrize(
    ("num_parallel", "num_threads", "message"),
    [(2, None, "needs accuracy.num_threads"), (3, 2, "more than the 4 cores"), (0, 1, "engine.num_parallel=0 must be")],
)
def test_more_trainings_than_cores_are_refused(num_parallel: int, num_threads: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_cores(num_parallel, num_threads, 4)


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_ahead", -1), ("measure_timeout_seconds", 0.0), ("train_timeout_seconds", -1.0), ("max_retries", -1)],
)
def test_settings_that_make_no_sense_are_named(tmp_path: Path, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"engine.{name}={value}"):
        local(tmp_path, 1, **{name: value})


def test_worker_that_is_another_device_ends_the_search(tmp_path: Path) -> None:
    engine = local(tmp_path, 1)

    async def measure_on_another_device() -> None:
        first = await engine.fingerprint("first")
        engine.expect("first", {**first, "threads": int(first["threads"]) + 1})
        await measure(engine, 8)

    try:
        with pytest.raises(SearchStopped, match="the worker for first differs from the one before: threads was"):
            asyncio.run(measure_on_another_device())
    finally:
        engine.close()


def test_reason_why_nothing_can_be_measured_comes_back(tmp_path: Path) -> None:
    engine = LocalEngine(
        {"first": TargetSource(make_no_target)}, partial(OddEvaluator, str(tmp_path)), num_parallel=1, **SETTINGS
    )
    try:
        for _ in range(2):
            with pytest.raises(ValueError, match="^no such device$"):
                asyncio.run(engine.fingerprint("first"))
    finally:
        engine.close()


def make_no_target() -> OddTarget:
    raise ValueError("no such device")


class WaitingWorker(Executor):
    """Does its tasks when it is told to."""

    hosts = (HERE,)

    def __init__(self, role: str, close: Callable[[], None] = lambda: None) -> None:
        self.role = role
        self.make: Callable[[], Resource] = lambda: None
        self.close = close
        self.report: Progress = lambda share: None
        self.task: Future[Any] | None = None
        self.running: tuple[Any, Future[None]] | None = None

    @property
    def executor(self) -> Executor:
        return self

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        (task,) = args
        ended: Future[None] = Future()
        self.running = (task.keywords.get("seed", "measuring"), ended)
        return ended

    def finish(self) -> None:
        assert self.running is not None
        self.running[1].set_result(None)
        self.running = None

    def restart(self) -> None:
        pass

    def seek_host(self) -> str | None:
        return None


class WaitingEngine(WorkerEngine):
    def __init__(self, workers: Sequence[WaitingWorker]) -> None:
        super().__init__(num_parallel=2, **SETTINGS)
        self.workers = list(workers)


def test_machine_measures_alone_and_nothing_overtakes_what_waits_for_it() -> None:
    workers = [WaitingWorker("first"), WaitingWorker(TRAINING), WaitingWorker(TRAINING)]
    engine = WaitingEngine(workers)

    async def settle() -> None:
        for _ in range(20):
            await asyncio.sleep(0.001)  # results come from other threads

    async def run() -> list[list[Any]]:
        coroutines = [train(engine, 8, 0), train(engine, 8, 1), measure(engine, 8), train(engine, 8, 2)]
        tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
        orders = []
        while True:
            await settle()
            busy = sorted((worker for worker in workers if worker.running), key=lambda worker: str(worker.running))
            orders.append([worker.running[0] for worker in busy if worker.running])
            if not busy:
                await asyncio.gather(*tasks)
                return orders
            busy[0].finish()

    assert asyncio.run(run()) == [[0, 1], [1], ["measuring"], [2], []]


def test_host_is_released_by_who_gives_up_waiting_for_it() -> None:
    async def run() -> list[str]:
        lock, events = HostLock(), list[str]()

        async def use(name: str, exclusive: bool, leave: asyncio.Event) -> None:
            async with lock.acquire(exclusive):
                events.append(name)
                await leave.wait()

        first_leaves, leave = asyncio.Event(), asyncio.Event()
        leave.set()
        first = asyncio.create_task(use("first", True, first_leaves))
        await asyncio.sleep(0)
        gives_up = asyncio.create_task(use("gives up", True, leave))
        others = [asyncio.create_task(use(name, False, leave)) for name in ("second", "third")]
        await asyncio.sleep(0)
        gives_up.cancel()
        await asyncio.sleep(0)
        first_leaves.set()
        await asyncio.gather(first, *others)
        return events

    assert asyncio.run(run()) == ["first", "second", "third"]


def test_all_workers_close_though_ctrl_c_comes_meanwhile() -> None:
    closed: list[int] = []

    def close(index: int) -> None:
        closed.append(index)
        if len(closed) == 1:
            raise KeyboardInterrupt

    roles = ("first", TRAINING, TRAINING)
    engine = WaitingEngine([WaitingWorker(role, partial(close, index)) for index, role in enumerate(roles)])
    with pytest.raises(KeyboardInterrupt):
        engine.close()
    assert closed == [2, 1, 0]

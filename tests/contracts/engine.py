"""What every engine must do. An engine's test module makes two fixtures and imports these tests: `engine`, with the targets
first and second, one training at a time and one retry, and `folder`, where its odd workers write.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Coroutine, Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import psutil
import pytest

from search.engine.base import TRAINING, EngineFailure
from search.engine.workers import WorkerEngine
from tests.contracts.odd_workers import CALIBRATION, stretches, wide


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """The event loop of an engine."""
    with asyncio.Runner() as runner:
        yield runner


async def together(*coroutines: Coroutine[Any, Any, Any]) -> list[Any]:
    """Have several things done at a time. Returns results and errors."""
    return await asyncio.gather(*coroutines, return_exceptions=True)


def train(engine: WorkerEngine, width: int, seed: int = 0) -> Coroutine[Any, Any, Any]:
    return engine.train(wide(width), seed, lambda share: None)


def measure(engine: WorkerEngine, width: int, target: str = "first") -> Coroutine[Any, Any, Any]:
    return engine.measure(target, wide(width), CALIBRATION)


def work_of(engine: WorkerEngine, role: str, width: int) -> Coroutine[Any, Any, Any]:
    return train(engine, width) if role == TRAINING else measure(engine, width, role)


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 60
    while lives(pid):
        assert time.monotonic() < deadline, "the process still lives"
        time.sleep(0.1)


def test_results_come_back(engine: WorkerEngine, runner: asyncio.Runner) -> None:
    assert runner.run(engine.calibrate("first", wide(8))) == CALIBRATION
    assert runner.run(measure(engine, 8, "second")).latency_ms == 8
    assert runner.run(train(engine, 8, seed=3)).seed == 3
    assert runner.run(engine.train_shared_weights(0, lambda share: None)) == b"shared"


def test_every_role_has_a_process_of_its_own(engine: WorkerEngine, runner: asyncio.Runner) -> None:
    roles = ("first", "second", TRAINING)
    pids = [runner.run(engine.fingerprint(role))["pid"] for role in roles]
    assert len({*pids, os.getpid()}) == 4
    assert [runner.run(engine.fingerprint(role))["pid"] for role in roles] == pids


def test_errors_of_the_work_come_back(engine: WorkerEngine, runner: asyncio.Runner) -> None:
    with pytest.raises(ValueError, match="^stage 2 does not fit$"):
        runner.run(measure(engine, 32))
    with pytest.raises(ValueError, match="^stage 2 does not fit$"):
        runner.run(train(engine, 32))
    assert runner.run(measure(engine, 8)).latency_ms == 8


@pytest.mark.parametrize("role", ["first", TRAINING])
def test_dead_worker_is_replaced_and_its_work_retried_once(engine: WorkerEngine, runner: asyncio.Runner, role: str) -> None:
    pid = runner.run(engine.fingerprint(role))["pid"]
    with pytest.raises(EngineFailure, match="process died .*, 2 times"):
        runner.run(work_of(engine, role, 16))
    assert runner.run(engine.fingerprint(role))["pid"] != pid
    assert runner.run(measure(engine, 8, "second")).latency_ms == 8


@pytest.mark.parametrize("role", ["first", TRAINING])
def test_worker_that_dies_while_idle_is_replaced(engine: WorkerEngine, runner: asyncio.Runner, role: str) -> None:
    pid = int(runner.run(engine.fingerprint(role))["pid"])
    os.kill(pid, signal.SIGKILL)
    wait_until_gone(pid)
    assert runner.run(engine.fingerprint(role))["pid"] != pid


@pytest.mark.parametrize("role", ["first", TRAINING])
def test_hung_worker_is_replaced(
    engine: WorkerEngine, runner: asyncio.Runner, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = int(runner.run(engine.fingerprint(role))["pid"])
    for name in ("measure_timeout_seconds", "train_timeout_seconds"):
        monkeypatch.setattr(engine, name, 1.0)
    monkeypatch.setattr(engine, "max_retries", 0)
    with pytest.raises(EngineFailure, match="no answer within 1 s"):
        runner.run(work_of(engine, role, 24))
    monkeypatch.undo()
    assert runner.run(engine.fingerprint(role))["pid"] != pid
    wait_until_gone(pid)


def test_target_is_never_measured_twice_at_a_time(engine: WorkerEngine, runner: asyncio.Runner, folder: Path) -> None:
    before = set(stretches(folder))
    runner.run(together(*(measure(engine, 40) for _ in range(4))))
    new = [stretch for stretch in stretches(folder) if stretch not in before]
    assert len(new) == 4
    assert not any(first.overlaps(other) for first, other in combinations(new, 2))


def test_host_never_measures_beside_anything(
    engine: WorkerEngine, runner: asyncio.Runner, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = set(stretches(folder))
    coroutines: list[Coroutine[Any, Any, Any]] = []
    for seed in range(3):
        coroutines += [train(engine, 40, seed), measure(engine, 40), measure(engine, 40, "second")]
    runner.run(together(*coroutines))
    hosts = {worker.role: worker.hosts[0] for worker in engine.workers}
    new = [stretch for stretch in stretches(folder) if stretch not in before]
    assert len(new) == 9
    for first, other in combinations(new, 2):
        assert not (first.overlaps(other) and hosts[first.role] == hosts[other.role]), (first, other)
    assert "it was replaced" not in caplog.text

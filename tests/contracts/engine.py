"""What every engine must do. An engine's test module makes two fixtures and imports these tests: `engine`, with the devices
first and second, one training at a time and one repetition, and `folder`, where its odd workers write.
"""

from __future__ import annotations

import os
import signal
import time
from itertools import combinations
from pathlib import Path

import psutil
import pytest

from search.engine.base import Engine, EngineFailure, Job
from search.engine.work import TRAINING, Measure, Train, Work
from tests.contracts.odd_workers import CALIBRATION, stretches, wide


def finish(engine: Engine, jobs: list[Job]) -> None:
    while not all(job.ended for job in jobs):
        engine.wait(0.1)


def submit(engine: Engine, *works: Work) -> list[Job]:
    jobs = [engine.submit(work) for work in works]
    finish(engine, jobs)
    return jobs


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while lives(pid):
        assert time.monotonic() < deadline, "the process still lives"
        time.sleep(0.1)


def test_results_come_back(engine: Engine) -> None:
    assert engine.calibrate("first", wide(8)) == CALIBRATION
    assert engine.measure("second", wide(8), CALIBRATION).latency_ms == 8
    assert engine.run(Train(wide(8), seed=3)).seed == 3
    assert engine.prepare(0, lambda share: None) == b"shared"


def test_every_place_is_a_process_of_its_own(engine: Engine) -> None:
    places = ("first", "second", TRAINING)
    pids = [engine.fingerprint(place)["pid"] for place in places]
    assert len({*pids, os.getpid()}) == 4
    assert [engine.fingerprint(place)["pid"] for place in places] == pids


def test_errors_of_the_work_come_back(engine: Engine) -> None:
    with pytest.raises(ValueError, match="^stage 2 does not fit$"):
        engine.measure("first", wide(32), CALIBRATION)
    with pytest.raises(ValueError, match="^stage 2 does not fit$"):
        engine.run(Train(wide(32), 0))
    assert engine.measure("first", wide(8), CALIBRATION).latency_ms == 8


@pytest.mark.parametrize("place", ["first", TRAINING])
def test_dead_worker_is_replaced_and_its_work_repeated_once(engine: Engine, place: str) -> None:
    pid = engine.fingerprint(place)["pid"]
    work = Measure(place, wide(16), CALIBRATION) if place == "first" else Train(wide(16), 0)
    (job,) = submit(engine, work)
    assert job.num_started == 2
    with pytest.raises(EngineFailure, match="process died .*, 2 times"):
        job.result()
    assert engine.fingerprint(place)["pid"] != pid
    assert engine.measure("second", wide(8), CALIBRATION).latency_ms == 8


@pytest.mark.parametrize("place", ["first", TRAINING])
def test_worker_that_dies_while_idle_is_replaced(engine: Engine, place: str) -> None:
    pid = int(engine.fingerprint(place)["pid"])
    os.kill(pid, signal.SIGKILL)
    wait_until_gone(pid)
    assert engine.fingerprint(place)["pid"] != pid


@pytest.mark.parametrize("place", ["first", TRAINING])
def test_hung_worker_is_replaced(engine: Engine, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = int(engine.fingerprint(place)["pid"])
    for name in ("measure_timeout_seconds", "train_timeout_seconds"):
        monkeypatch.setattr(engine, name, 1.0)
    monkeypatch.setattr(engine, "max_retries", 0)
    work = Measure(place, wide(24), CALIBRATION) if place == "first" else Train(wide(24), 0)
    (job,) = submit(engine, work)
    with pytest.raises(EngineFailure, match="no answer within 1 s"):
        job.result()
    monkeypatch.undo()
    assert engine.fingerprint(place)["pid"] != pid
    wait_until_gone(pid)


def test_device_is_never_measured_twice_at_once(engine: Engine, folder: Path) -> None:
    known = set(stretches(folder))
    submit(engine, *[Measure("first", wide(40), CALIBRATION) for _ in range(4)])
    new = [one for one in stretches(folder) if one not in known]
    assert len(new) == 4
    assert not any(one.overlaps(other) for one, other in combinations(new, 2))


def test_machine_never_measures_beside_anything(engine: Engine, folder: Path) -> None:
    known = set(stretches(folder))
    works: list[Work] = []
    for seed in range(3):
        works += [Train(wide(40), seed), Measure("first", wide(40), CALIBRATION), Measure("second", wide(40), CALIBRATION)]
    jobs = submit(engine, *works)
    sites = {lane.place: lane.sites[0] for lane in engine._lanes}
    new = [one for one in stretches(folder) if one not in known]
    assert len(new) == 9
    for one, other in combinations(new, 2):
        assert not (one.overlaps(other) and sites[one.place] == sites[other.place]), (one, other)
    assert all(job.num_started == 1 for job in jobs)

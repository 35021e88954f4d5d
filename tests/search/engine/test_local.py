"""The local engine keeps the contract: a process of its own for every device and every training that may go on at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

from search import SearchStopped
from search.engine.base import HERE, POLL_SECONDS, Device, Engine
from search.engine.local import LocalEngine, check_cores
from search.engine.work import TRAINING, Measure, Train
from search.latency.machine import allowed_cores
from tests.contracts.engine import *  # noqa: F403
from tests.contracts.engine import submit
from tests.contracts.odd_workers import CALIBRATION, OddEvaluator, OddTarget, stretches, wide

SETTINGS: dict[str, Any] = {
    "num_ahead": None,
    "measure_timeout_seconds": 60.0,
    "train_timeout_seconds": 60.0,
    "max_retries": 1,
    "measure_beside_training": False,
}


def local(folder: Path, num_parallel: int, second_sites: tuple[str, ...] = (HERE,), **changed: Any) -> LocalEngine:
    devices = {
        "first": Device(partial(OddTarget, str(folder))),
        "second": Device(partial(OddTarget, str(folder), "second"), second_sites),
    }
    settings = {**SETTINGS, "num_threads": 1, **changed}
    return LocalEngine(devices, partial(OddEvaluator, str(folder)), num_parallel=num_parallel, **settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("times")


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    engine = local(folder, 1)
    yield engine
    engine.close()


needs_two_cores = pytest.mark.skipif(len(allowed_cores()) < 2, reason="one core: it takes one training at a time")


@pytest.fixture(scope="module")
def wide_engine(folder: Path) -> Iterator[Engine]:
    """Two trainings at once, and a second device elsewhere."""
    engine = local(folder, 2, ("elsewhere", HERE))
    yield engine
    engine.close()


def test_threads_of_this_process_do_not_reach_it(engine: Engine) -> None:
    before = engine.fingerprint("first")
    torch.set_num_threads(1 if torch.get_num_threads() > 1 else 2)
    assert engine.fingerprint("first") == before


def test_what_a_process_logs_is_logged_here(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="search.odd"):
        engine.run(Train(wide(8), 0))
        deadline = time.monotonic() + 10
        while "training a network of width 8" not in caplog.messages:  # it comes by another way than the result
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_progress_of_a_training_is_heard(engine: Engine) -> None:
    shares: list[float] = []
    engine.run(Train(wide(40), 0), shares.append)  # which takes longer than what it says on its way
    assert shares[-1] == 0.25


def test_one_training_at_a_time_is_one_trial_at_a_time(engine: Engine) -> None:
    assert engine.num_trials == 1


@needs_two_cores
def test_trainings_go_on_at_once_and_never_beside_a_measurement(wide_engine: Engine, folder: Path) -> None:
    wide_engine.run(Train(wide(8), 0))  # both processes are up before anything is timed
    submit(wide_engine, *[Train(wide(40), seed) for seed in range(4)])
    known = set(stretches(folder))
    works = [Train(wide(40), seed) for seed in range(4)]
    submit(wide_engine, *works, *[Measure("first", wide(40), CALIBRATION) for _ in range(2)])
    new = [one for one in stretches(folder) if one not in known]
    pairs = [(one, other) for one, other in combinations(new, 2) if one.overlaps(other)]
    assert len(new) == 6
    assert pairs
    assert {one.place for pair in pairs for one in pair} == {TRAINING}


@needs_two_cores
def test_device_elsewhere_is_measured_meanwhile(wide_engine: Engine, folder: Path) -> None:
    submit(wide_engine, *[Train(wide(8), seed) for seed in range(2)], Measure("second", wide(8), CALIBRATION))
    known = set(stretches(folder))
    submit(wide_engine, Train(wide(40), 0), Measure("second", wide(40), CALIBRATION))
    one, other = (one for one in stretches(folder) if one not in known)
    assert one.overlaps(other)


@needs_two_cores
def test_trials_are_measured_ahead_of_several_trainings(wide_engine: Engine) -> None:
    assert wide_engine.num_trials == 4


def test_waiting_ends_when_nothing_does(engine: Engine) -> None:
    job = engine.submit(Measure("first", wide(40), CALIBRATION))
    assert engine.wait(0.01) == []
    while not job.ended:
        engine.wait(POLL_SECONDS)


@pytest.mark.parametrize(
    ("num_parallel", "num_threads", "said"),
    [(2, None, "needs accuracy.num_threads"), (3, 2, "more than the 4 cores"), (0, 1, "engine.num_parallel=0 must be")],
)
def test_more_trainings_than_cores_are_refused(num_parallel: int, num_threads: int | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
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
    try:
        first = engine.fingerprint("first")
        engine.expect("first", {**first, "threads": int(first["threads"]) + 1})
        with pytest.raises(SearchStopped, match="what does first now is not what did before: threads was"):
            engine.measure("first", wide(8), CALIBRATION)
    finally:
        engine.close()


def test_reason_why_nothing_can_be_measured_comes_back(tmp_path: Path) -> None:
    engine = LocalEngine(
        {"first": Device(partial(no_target))}, partial(OddEvaluator, str(tmp_path)), num_parallel=1, **SETTINGS
    )
    try:
        for _ in range(2):
            with pytest.raises(ValueError, match="^no such device$"):
                engine.fingerprint("first")
    finally:
        engine.close()


def no_target() -> OddTarget:
    raise ValueError("no such device")

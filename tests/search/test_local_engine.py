"""The local engine: a process of its own for measuring, which fails and ends as it should."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import pytest
import torch

from models.architecture import Architecture
from search.accuracy.base import Accuracy, Progress
from search.engine.base import EngineFailure
from search.engine.local import LocalEngine
from search.latency.base import Calibration, Latency


@dataclass
class OddTarget:
    """Does what the architecture's width asks for: 8 answers, 16 dies, 24 hangs, 32 raises."""

    pid_file: str

    def fingerprint(self) -> dict[str, str | int]:
        return {"pid": os.getpid(), "threads": torch.get_num_threads()}

    def calibrate(self, anchor: Architecture) -> Calibration:
        return Calibration(anchor, 1.0, 1.0, 1.0, 1)

    def measure(self, architecture: Architecture, calibration: Calibration) -> Latency:
        if architecture.embed_dim == 16:
            os.kill(os.getpid(), signal.SIGKILL)
        if architecture.embed_dim == 24:
            time.sleep(600)
        if architecture.embed_dim == 32:
            raise ValueError("stage 2 does not fit")
        return Latency(1.0, 0.9, 1.1, 20, 6, True, 0.1)


class NoTraining:
    def evaluate(self, architecture: Architecture, seed: int, progress: Progress) -> Accuracy:
        return Accuracy(0.5, 10, seed, 0.0)


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    engine = LocalEngine(partial(OddTarget, ""), NoTraining(), measure_timeout_seconds=60.0)
    yield engine
    engine.close()


def wide(architecture: Architecture, width: int) -> Architecture:
    return Architecture(width, architecture.stages, architecture.patch_size, architecture.downsample)


def test_measures_in_another_process(engine: LocalEngine) -> None:
    assert engine.fingerprint()["pid"] != os.getpid()


def test_threads_of_this_process_do_not_reach_it(engine: LocalEngine) -> None:
    before = engine.fingerprint()
    torch.set_num_threads(1 if torch.get_num_threads() > 1 else 2)
    assert engine.fingerprint() == before


def test_errors_of_a_measurement_come_back(engine: LocalEngine, architecture: Architecture) -> None:
    calibration = engine.calibrate(architecture)
    with pytest.raises(ValueError, match="stage 2 does not fit"):
        engine.measure(wide(architecture, 32), calibration)
    assert engine.measure(architecture, calibration).latency_ms == 1.0


def test_dead_process_is_replaced(engine: LocalEngine, architecture: Architecture) -> None:
    calibration = engine.calibrate(architecture)
    pid = engine.fingerprint()["pid"]
    with pytest.raises(EngineFailure, match="the measuring process died"):
        engine.measure(wide(architecture, 16), calibration)
    assert engine.measure(architecture, calibration).latency_ms == 1.0
    assert engine.fingerprint()["pid"] != pid


def test_hung_process_is_replaced(engine: LocalEngine, architecture: Architecture) -> None:
    calibration = engine.calibrate(architecture)
    pid = int(engine.fingerprint()["pid"])
    engine.timeout = 1.0
    with pytest.raises(EngineFailure, match="no answer within 1 s"):
        engine.measure(wide(architecture, 24), calibration)
    engine.timeout = 60.0
    assert engine.measure(architecture, calibration).latency_ms == 1.0
    assert not alive(pid)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True

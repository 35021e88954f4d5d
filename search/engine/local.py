"""This machine: measuring in a process of its own, training in the coordinator's."""

from __future__ import annotations

import atexit
import gc
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from models.architecture import Architecture
from search.accuracy.base import Accuracy, AccuracyEvaluator, Progress
from search.engine.base import EngineFailure
from search.latency.base import Calibration, Latency, LatencyTarget

log = logging.getLogger(__name__)
Result = TypeVar("Result")
GRACE_SECONDS = 2.0  # for the measuring process to end by itself


class LocalEngine:
    """Measure and train in turns on this machine.

    The measuring process does nothing else, so no thread setting of the trainer or a sampler reaches it.
    measure_timeout_seconds: after this long without an answer a measurement counts as hung and its process is replaced.
    """

    def __init__(
        self, make_target: Callable[[], LatencyTarget], evaluator: AccuracyEvaluator, measure_timeout_seconds: float
    ) -> None:
        self.make_target = make_target
        self.evaluator = evaluator
        self.timeout = measure_timeout_seconds
        self._pool = self._start()

    def fingerprint(self) -> dict[str, str | int]:
        return self._in_measuring_process(_fingerprint)

    def calibrate(self, anchor: Architecture) -> Calibration:
        return self._in_measuring_process(_calibrate, anchor)

    def measure(self, architecture: Architecture, calibration: Calibration) -> Latency:
        """Raises: EngineFailure if the measuring process died or hung, else what went wrong in it."""
        return self._in_measuring_process(_measure, architecture, calibration)

    def train(self, architecture: Architecture, seed: int, progress: Progress) -> Accuracy:
        return self.evaluator.evaluate(architecture, seed, progress)

    def close(self) -> None:
        processes = list((self._pool._processes or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.join(GRACE_SECONDS)  # compilers have semaphores to give back
            process.kill()  # it holds nothing worth saving

    def _start(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(1, context, initializer=_prepare_process, initargs=(self.make_target,))

    def _in_measuring_process(self, function: Callable[..., Result], *args: Any) -> Result:
        try:
            with _ignoring_ctrl_c():
                future = self._pool.submit(function, *args)
            return future.result(self.timeout)
        except BrokenProcessPool as error:
            self._restart()
            raise EngineFailure("the measuring process died (out of memory?)") from error
        except TimeoutError as error:
            self._restart()
            raise EngineFailure(f"the measurement gave no answer within {self.timeout:g} s") from error

    def _restart(self) -> None:
        log.warning("restarting the measuring process")
        self.close()
        self._pool = self._start()


@contextmanager
def _ignoring_ctrl_c() -> Iterator[None]:
    """A process started meanwhile ignores Ctrl-C for good: that is for the coordinator, which ends the process."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


_target: LatencyTarget


def _prepare_process(make_target: Callable[[], LatencyTarget]) -> None:
    global _target
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _target = make_target()
    gc.collect()
    gc.freeze()  # what was imported stays: going through it twice would take a fifth of a measurement
    atexit.register(gc.unfreeze)  # or extensions report what was frozen as leaks


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()  # returns even if the coordinator was killed
    os._exit(1)


def _fingerprint() -> dict[str, str | int]:
    return _target.fingerprint()


def _calibrate(anchor: Architecture) -> Calibration:
    return _target.calibrate(anchor)


def _measure(architecture: Architecture, calibration: Calibration) -> Latency:
    return _target.measure(architecture, calibration)

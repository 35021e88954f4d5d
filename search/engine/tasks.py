"""Tasks of workers: functions of a resource, which an engine binds arguments to and sends to the worker's process."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from models.architecture import Architecture
from search import differences, one_line
from search.accuracy.base import Accuracy, AccuracyEvaluator, Progress, SharedWeights, StopsEarly
from search.engine.base import Fingerprint, WorkerChanged
from search.latency.base import Calibration, Latency, LatencyTarget

Resource = Any
"""A LatencyTarget or an AccuracyEvaluator."""
Task = Callable[[Resource, Progress], Any]
"""A function of this module with its arguments bound, which can be sent to another process."""


def fingerprint(resource: LatencyTarget | AccuracyEvaluator, progress: Progress) -> Fingerprint:
    return resource.fingerprint()


def calibrate(
    target: LatencyTarget, progress: Progress, anchor: Architecture, repeated: Sequence[Architecture]
) -> Calibration:
    return target.calibrate(anchor, repeated)


def measure(target: LatencyTarget, progress: Progress, architecture: Architecture, calibration: Calibration) -> Latency:
    return target.measure(architecture, calibration)


def train(
    evaluator: AccuracyEvaluator, progress: Progress, architecture: Architecture, seed: int, num_epochs: int | None
) -> Accuracy:
    if num_epochs is None:
        return evaluator.evaluate(architecture, seed, progress)
    assert isinstance(evaluator, StopsEarly)
    return evaluator.evaluate_early(architecture, seed, num_epochs, progress)


def train_shared_weights(evaluator: SharedWeights, progress: Progress, seed: int) -> bytes:
    evaluator.prepare(seed, progress)
    packed = evaluator.pack(seed)
    assert packed is not None, "prepared weights cannot be packed"
    return packed


def checked(resource: Resource, progress: Progress, task: Task, role: str, expected: Mapping[str, str | int]) -> Any:
    """Run a task after checking that the worker's results compare with those of the worker before it.

    Raises: WorkerChanged naming what differs.
    """
    if changed := differences(expected, resource.fingerprint()):
        raise WorkerChanged(f"the worker for {role} differs from the one before: {changed}; restore it and start again")
    return task(resource, progress)


class ProcessState(NamedTuple):
    """State of a worker's process: its resource, or the exception that making it raised, and where reports go."""

    resource: Resource
    report: Progress


_state: ProcessState


def set_up_process(make: Callable[[], Resource], report: Progress) -> None:
    """Make the resource of this process."""
    global _state
    try:
        _state = ProcessState(make(), report)
    except Exception as error:
        _state = ProcessState(error, report)


def run_task(task: Task) -> Any:
    """Run a task in the process of a worker. Raises: an error that survives the way to another process."""
    try:
        if isinstance(_state.resource, Exception):
            raise _state.resource
        return task(_state.resource, _state.report)
    except Exception as error:
        raise _picklable(error) from None


def _picklable(error: Exception) -> Exception:
    """The error, or its message if it does not survive pickling."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(one_line(error))
    return error

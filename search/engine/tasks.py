"""What workers do with the resource that each of them holds, a latency target or an accuracy evaluator.

A task is a function of this module with its arguments bound by `functools.partial`: it can be sent to another process or
machine.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from typing import Any

from models.architecture import Architecture
from search import differences, one_line
from search.accuracy.base import Accuracy, AccuracyEvaluator, Progress, SharedWeights
from search.engine.base import Fingerprint, WorkerChanged
from search.latency.base import Calibration, Latency, LatencyTarget

Resource = Any
"""A LatencyTarget or an AccuracyEvaluator, or the exception that making one raised."""
Task = Callable[[Resource, Progress], Any]


def fingerprint(resource: LatencyTarget | AccuracyEvaluator, progress: Progress) -> Fingerprint:
    return resource.fingerprint()


def calibrate(target: LatencyTarget, progress: Progress, anchor: Architecture) -> Calibration:
    return target.calibrate(anchor)


def measure(target: LatencyTarget, progress: Progress, architecture: Architecture, calibration: Calibration) -> Latency:
    return target.measure(architecture, calibration)


def train(evaluator: AccuracyEvaluator, progress: Progress, architecture: Architecture, seed: int) -> Accuracy:
    return evaluator.evaluate(architecture, seed, progress)


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
        raise WorkerChanged(f"the worker for {role} is not the same as before: {changed}; restore that and run again")
    return task(resource, progress)


def make_resource(make: Callable[[], Resource]) -> Resource:
    """Make a worker's resource, or return the exception that this raised, for whoever sends it a task."""
    try:
        return make()
    except Exception as error:
        return error


def run(task: Task, resource: Resource, progress: Progress) -> Any:
    """Run a task in a worker. Raises: an error that survives the way to another process."""
    try:
        if isinstance(resource, Exception):
            raise resource
        return task(resource, progress)
    except Exception as error:
        raise _picklable(error) from None


def _picklable(error: Exception) -> Exception:
    """The error, or its message if it does not survive pickling."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(one_line(error))
    return error

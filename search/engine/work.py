"""What an engine can be asked to do. Each piece of work says where it belongs, and does itself with what is found there.

Work and results are plain data, so that they can go to another process or machine.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from models.architecture import Architecture
from search import SearchStopped, differences, one_line
from search.accuracy.base import Accuracy, AccuracyEvaluator, Progress, SharedWeights
from search.latency.base import Calibration, Latency, LatencyTarget

TRAINING = "training"  # the place of all evaluators; other places are names of devices


class Work(Protocol):
    """place: a device's name, or TRAINING. do: with what a lane of that place holds, a latency target or an evaluator."""

    @property
    def place(self) -> str: ...

    def do(self, held: Any, progress: Progress) -> Any: ...


@dataclass(frozen=True)
class Fingerprint:
    """What results of a place depend on."""

    place: str

    def do(self, held: LatencyTarget | AccuracyEvaluator, progress: Progress) -> dict[str, str | int]:
        return held.fingerprint()


class OtherPlace(SearchStopped):
    """A worker that took another's place, and would give results that do not belong with those before."""


@dataclass(frozen=True)
class Verified:
    """Work for a worker that has not done any yet: only if its results belong with those of the others."""

    work: Work
    expected: Mapping[str, str | int]

    @property
    def place(self) -> str:
        return self.work.place

    def do(self, held: LatencyTarget | AccuracyEvaluator, progress: Progress) -> Any:
        if changed := differences(self.expected, held.fingerprint()):
            raise OtherPlace(f"what does {self.place} now is not what did before: {changed}; put that back and go on")
        return self.work.do(held, progress)


@dataclass(frozen=True)
class Calibrate:
    place: str
    anchor: Architecture

    def do(self, held: LatencyTarget, progress: Progress) -> Calibration:
        return held.calibrate(self.anchor)


@dataclass(frozen=True)
class Measure:
    place: str
    architecture: Architecture
    calibration: Calibration

    def do(self, held: LatencyTarget, progress: Progress) -> Latency:
        return held.measure(self.architecture, self.calibration)


@dataclass(frozen=True)
class Prepare:
    """What evaluations with a seed share, as bytes for evaluators elsewhere."""

    seed: int
    place: str = TRAINING

    def do(self, held: SharedWeights, progress: Progress) -> bytes:
        held.prepare(self.seed, progress)
        packed = held.pack(self.seed)
        assert packed is not None, "evaluations share nothing"
        return packed


@dataclass(frozen=True)
class Train:
    architecture: Architecture
    seed: int
    place: str = TRAINING

    def do(self, held: AccuracyEvaluator, progress: Progress) -> Accuracy:
        return held.evaluate(self.architecture, self.seed, progress)


def made(make: Callable[[], Any]) -> Any:
    """What a worker holds, or why it cannot be made, for whoever asks it for work."""
    try:
        return make()
    except Exception as error:
        return error


def carried_out(work: Work, held: Any, progress: Progress) -> Any:
    """Raises: what went wrong, also while what is held was made, as an error that bears the way to the coordinator."""
    try:
        if isinstance(held, Exception):
            raise held
        return work.do(held, progress)
    except Exception as error:
        raise portable(error) from None


def portable(error: Exception) -> Exception:
    """An error as it is, or what it says if it would not survive the way from one process to another."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(one_line(error))
    return error

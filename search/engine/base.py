"""The role of an engine: it runs measurements and trainings somewhere and hands back their results."""

from __future__ import annotations

from typing import Protocol

from models.architecture import Architecture
from search.accuracy.base import Accuracy, Progress
from search.latency.base import Calibration, Latency


class EngineFailure(RuntimeError):
    """A worker died or hung; the engine has replaced it."""


class Engine(Protocol):
    """Runs one thing at a time, so that training never disturbs a measurement."""

    def fingerprint(self) -> dict[str, str | int]: ...

    def calibrate(self, anchor: Architecture) -> Calibration: ...

    def measure(self, architecture: Architecture, calibration: Calibration) -> Latency: ...

    def train(self, architecture: Architecture, seed: int, progress: Progress) -> Accuracy: ...

    def close(self) -> None: ...

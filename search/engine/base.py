"""The role of an engine, and the errors that it adds to those of its tasks.

An engine measures and trains somewhere, several things at a time where it can. Whoever needs a result awaits it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from models.architecture import Architecture
from search import SearchStopped
from search.accuracy.base import Accuracy, AccuracyEvaluator, Progress
from search.latency.base import Calibration, Latency, LatencyTarget

TRAINING = "training"  # the role of workers that train; that of the others is the name of a latency target
HERE = "here"  # the host that a worker runs on

Fingerprint = Mapping[str, str | int]


class EngineFailure(SearchStopped):
    """A worker died or hung more often than work is retried. In a trial this is the reason of its failure."""


class WorkerChanged(SearchStopped):
    """A worker that replaced another one would give results that do not compare with those before."""


@dataclass(frozen=True)
class TargetSource:
    """Where a latency target comes from.

    Attributes:
        make: makes it, in whichever process.
        hosts: the host that measures, which other work would disturb, then those where the target computes beside that,
            such as the one that prepares networks for another machine. `HERE` is the host of the worker.
    """

    make: Callable[[], LatencyTarget]
    hosts: tuple[str, ...] = (HERE,)


class Engine(Protocol):
    """Measures and trains. Every implementation passes tests/contracts/engine.py.

    Workers that die or hang are replaced and their work is retried; then EngineFailure is raised. Errors of the work itself
    are raised as they are. A target is never measured twice at a time, no host measures beside other work unless it may.
    """

    @property
    def num_trials(self) -> int:
        """How many trials are worth running at a time."""
        ...

    async def fingerprint(self, role: str) -> Fingerprint:
        """What the results of a latency target, or of `TRAINING`, depend on."""
        ...

    def expect(self, role: str, fingerprint: Fingerprint) -> None:
        """Raise WorkerChanged from now on if a worker of this role turns out to have another fingerprint."""
        ...

    async def calibrate(self, target: str, anchor: Architecture, repeated: Sequence[Architecture] = ()) -> Calibration:
        """Measure the anchor's own latency on a target, and how well it repeats by measuring networks several times."""
        ...

    async def measure(self, target: str, architecture: Architecture, calibration: Calibration) -> Latency:
        """Measure a network on a target."""
        ...

    async def train(
        self, architecture: Architecture, seed: int, progress: Progress, num_epochs: int | None = None
    ) -> Accuracy:
        """Train a network, or score it with shared weights.

        Args:
            progress: takes the share that is done, where the engine knows it.
            num_epochs: one of the evaluator's rungs (`StopsEarly`), to stop there; None to train to the end.
        """
        ...

    async def train_shared_weights(self, seed: int, progress: Progress) -> bytes:
        """Train the weights that all evaluations with a seed share. Returns them packed, for other evaluators."""
        ...

    def use_evaluator(self, make_evaluator: Callable[[], AccuracyEvaluator]) -> None:
        """Train with this evaluator, from the next worker that starts."""
        ...

    def close(self) -> None:
        """End all workers."""
        ...

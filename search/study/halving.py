"""Asynchronous successive halving of trainings by accuracy and latency (accuracy.halving).

A network whose training has come to a rung (a number of epochs) is compared at once with all that came there before, so
nobody waits. They are sorted into fronts of non-dominated networks. The training continues if less than a share of the
networks, 1 / factor, are in better fronts than its own. While there are fewer networks than the factor, all continue.

Sources: Li et al., "A System for Massively Parallel Hyperparameter Tuning", arXiv 1810.05934; with several objectives:
Schmucker et al., "Multi-objective Asynchronous Successive Halving", arXiv 2106.12639.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from search.accuracy.base import AccuracyEvaluator, StopsEarly
from search.study.pareto import nondominated_fronts
from search.study.trial import TrialRecord


@dataclass
class Halving:
    """Compares trainings at rungs.

    Attributes:
        rungs: epochs after which trainings are compared, rising.
        factor: one in so many goes on.
    """

    rungs: Sequence[int]
    factor: int
    _points: dict[int, dict[str, tuple[float, tuple[float, ...]]]] = field(default_factory=dict)  # by rung and network

    @classmethod
    def of(cls, evaluator: AccuracyEvaluator) -> Self | None:
        """Make it for an evaluator; None if that trains all networks to the end."""
        if not isinstance(evaluator, StopsEarly) or evaluator.halving is None:
            return None
        return cls(evaluator.rungs, evaluator.halving)

    def add(self, rung: int, key: str, accuracy: float, latencies_ms: Sequence[float]) -> None:
        """Add a network that has come to a rung.

        Args:
            rung: the number of epochs.
            key: of the network.
            accuracy: after these epochs.
            latencies_ms: on the targets that are objectives.
        """
        self._points.setdefault(rung, {})[key] = accuracy, tuple(latencies_ms)

    def observe(self, trial: TrialRecord) -> None:
        """Add a finished trial."""
        for rung, accuracy in trial.result.rungs.items():
            self.add(rung, trial.architecture.key, accuracy, trial.result.latencies_ms)

    def should_continue(self, rung: int, key: str) -> bool:
        """Decide whether the training of a network that has come to a rung is worth continuing."""
        points = self._points[rung]
        if len(points) < self.factor:
            return True
        number, num_better = list(points).index(key), 0
        accuracies, latencies = zip(*points.values(), strict=True)
        for members in nondominated_fronts(accuracies, latencies):
            if num_better * self.factor >= len(points):
                return False
            if number in members:
                return True
            num_better += len(members)
        raise AssertionError("every network is in a front")

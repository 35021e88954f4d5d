"""Asynchronous successive halving of trainings by accuracy and latency (accuracy.halving).

A network whose training has come to a rung is compared at once with all that came there before, so nobody waits. It goes on
if the fronts that dominate its own have less than a share of them, 1 / factor; so whole fronts go on, and the first
networks, fewer than the factor, all do.

Sources: Li et al., "A System for Massively Parallel Hyperparameter Tuning", arXiv 1810.05934; with several objectives:
Schmucker et al., "Multi-objective Asynchronous Successive Halving", arXiv 2106.12639.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from search.accuracy.base import AccuracyEvaluator, StopsEarly
from search.study.pareto import front_indices


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
        """That of an evaluator; None if it trains all networks to the end."""
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

    def goes_on(self, rung: int, key: str) -> bool:
        """Whether the training of a network that has come to a rung is worth continuing."""
        points = self._points[rung]
        if len(points) < self.factor:
            return True
        keys = list(points)
        accuracies, latencies = np.array([points[each][0] for each in keys]), np.array([points[each][1] for each in keys])
        left, num_better = np.arange(len(keys)), 0
        while num_better * self.factor < len(keys):
            members = left[front_indices(accuracies[left], latencies[left])]
            if key in {keys[index] for index in members}:
                return True
            left, num_better = np.setdiff1d(left, members), num_better + len(members)
        return False

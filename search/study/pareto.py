"""Pareto fronts of accuracy (higher is better) and latencies (lower is better), and the volume they dominate.

Latencies are one number per network or, where several targets are objectives, a row of them. Non-domination and
hypervolume are computed by moocore (https://multi-objective.github.io/moocore).
"""

from __future__ import annotations

from collections.abc import Sequence

import moocore
import numpy as np
from numpy.typing import NDArray

ROUNDING = 1e-12  # of volumes, which are in [0, 1]
DRAWS = 1000  # of a Monte Carlo estimate: its own error is at most 0.016

Numbers = Sequence[float] | Sequence[Sequence[float]] | NDArray[np.float64]
"""One latency per network, or a row of them, one per target."""


def front_indices(accuracies: Sequence[float] | NDArray[np.float64], latencies: Numbers) -> list[int]:
    """Find the points that no other point dominates.

    Args:
        accuracies: (points,).
        latencies: (points,) or (points, targets).

    Returns:
        Their indices, by rising (first) latency. Of equal points the first counts.
    """
    table = _table(latencies)
    if not len(table):
        return []
    is_member = moocore.is_nondominated(_costs(accuracies, table))
    return sorted((int(index) for index in np.flatnonzero(is_member)), key=lambda index: float(table[index, 0]))


def front_probabilities(
    accuracies: Sequence[float],
    accuracy_errors: Sequence[float],
    latencies: Numbers,
    latency_errors: Numbers,
) -> list[float]:
    """Estimate how probable it is for each point that no other one dominates it, given the errors of all values.

    Errors are taken as independent and normal; accuracies on the same images err alike, so the truth is surer than this.

    Args:
        accuracy_errors: standard errors.
        latency_errors: standard errors of the latencies' logarithms.

    Returns:
        Probabilities, from 1,000 draws.
    """
    rng = np.random.default_rng(0)
    count = len(accuracies)
    logs, log_errors = np.log(_table(latencies)), _table(latency_errors)
    wins = np.zeros(count)
    for _ in range(DRAWS):
        accuracy = np.asarray(accuracies) + rng.normal(size=count) * accuracy_errors
        latency = logs + rng.normal(size=logs.shape) * log_errors
        wins[front_indices(accuracy, latency)] += 1
    return [float(share) for share in wins / DRAWS]


def hypervolume(accuracies: Sequence[float], latencies: Numbers, references: float | Sequence[float]) -> float:
    """Share of the box (accuracy 0 to 1, each latency 0 to its reference) that the points dominate, in [0, 1]."""
    ends = np.atleast_1d(np.asarray(references, float))
    return _volume(np.asarray(accuracies, float), _table(latencies), ends) / float(ends.prod())


def gain(
    accuracies: Sequence[float],
    latencies: Numbers,
    accuracy: float,
    point_latencies: Sequence[float],
    references: Sequence[float],
) -> float:
    """Compute what a further point would add to the hypervolume of a front.

    It is the point's own box less what the front dominates of that box: no difference of two large volumes.
    """
    ends, limits = np.asarray(references, float), np.asarray(point_latencies, float)
    if not (limits < ends).all():
        return 0.0
    clipped = np.minimum(accuracies, accuracy), np.maximum(_table(latencies), limits)
    added = accuracy * float((ends - limits).prod()) - _volume(*clipped, ends)
    share = added / float(ends.prod())
    return share if share > ROUNDING else 0.0


def _volume(accuracy: NDArray[np.float64], latency: NDArray[np.float64], ends: NDArray[np.float64]) -> float:
    return float(moocore.hypervolume(_costs(accuracy, latency), ref=[0.0, *ends])) if len(latency) else 0.0


def _costs(accuracy: Sequence[float] | NDArray[np.float64], latency: NDArray[np.float64]) -> NDArray[np.float64]:
    """Columns to minimise."""
    return np.column_stack((-np.asarray(accuracy, float), latency))


def _table(values: Numbers) -> NDArray[np.float64]:
    """A row per network, a column per target."""
    table = np.asarray(values, float)
    return table.reshape(len(table), -1) if table.size else np.empty((0, 1))
